"""What a confirmation runs: it is fixed before the test set is opened. Imports neither torch nor Ray.

The configurations are the best of the search by backbone, chosen on validation. Each is trained on fresh seeds beside every
control, on the same seeds, and each of these trials opens the test set once, at its end. A confirmation is a study of its own,
``NAME.confirm``, on the same engine; its ``plan.json`` says what was chosen, and when.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emoreg.config import (
    CONFIRM,
    ResolvedTrial,
    SchedulerConfig,
    StudyConfig,
    Value,
    from_json,
    to_json,
)
from emoreg.config.confirmation import with_own_cuts
from emoreg.errors import ConfigError, StorageError
from emoreg.formatting import control_name, ordinal
from emoreg.results.records import TrialRecord, utc_now
from emoreg.storage.files import Files
from emoreg.storage.sealed import digest, seal, unseal

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A configuration that the search found.

    Attributes:
        identity: of the trial of the search.
        rank: among its backbone's, and task's, from 1.
        val_accuracy: on validation, in [0, 1]. Selected, so it flatters.
        params: what the search chose, by path.
        task: where several were searched, else None.
    """

    identity: str
    backbone: str
    rank: int
    val_accuracy: float | None
    params: Mapping[str, Value]
    task: str | None = None

    @property
    def name(self) -> str:
        """What a reader calls it."""
        where = self.backbone if self.task is None else f"{self.backbone} on {self.task}"
        return where if self.rank == 1 else f"{where}, number {self.rank}"


class Rival(NamedTuple):
    """What regulation is compared with: a control, tuned at the best of its own search or, by ``rank``, its second best."""

    control: str
    rank: int = 1

    def __str__(self) -> str:
        return self.control if self.rank == 1 else f"{self.control} ({ordinal(self.rank)})"

    @property
    def label(self) -> str:
        """What a reader calls it where it stands alone."""
        return control_name(self.control) + ("" if self.rank == 1 else f", {ordinal(self.rank)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """A control at one of the best of its own search, beside a chosen configuration.

    Attributes:
        chosen: identity of the configuration.
        control: what is tuned.
        identity: of the trial of the control's search, or of its one configuration where it has nothing to search.
        val_accuracy: of that trial, selected; None where there is nothing to search.
        params: what the control's search chose, by path.
        rank: in that search, from 1.
    """

    chosen: str
    control: str
    identity: str
    val_accuracy: float | None
    params: Mapping[str, Value]
    rank: int = 1

    @property
    def rival(self) -> Rival:
        """What regulation is compared with."""
        return Rival(self.control, self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrial:
    """A trial of a confirmation: its own identity, and that of the chosen configuration which it belongs to, as what.

    ``rank`` is that of its settings in the control's own search, if they come from there.
    """

    chosen: str
    control: str
    seed: int
    identity: str
    rank: int = 1

    @property
    def rival(self) -> Rival:
        """What regulation is compared with; or itself."""
        return Rival(self.control, self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """One opening of the test set, and what was fixed before it.

    Attributes:
        opened: when it was begun, UTC.
        chosen: what is confirmed.
        trials: each configuration and its controls, at the configuration's settings.
        tuned_trials: controls at the best and the second best of their own searches, on the same seeds.
        tuned: what these bests are.
        smallest_effect: the least that matters, in points; None where none was declared.
        searched_until: when the last trial ended that the choice was made from, UTC.
        test_splits: by which ledgers of openings know them; none where an emoreg without ledgers opened them.
        has_own_cuts: whether its trials train on the whole training split of their task, and each seed cuts images for itself;
            else, by an emoreg before, validation was held out as in the search.
        looks: after how many seeds the answer is looked at, in a plan of two looks; empty: once, after all.
        is_stopped: whether the first of two looks gave the answer, so that the other seeds were left out.
    """

    opened: str
    chosen: tuple[Chosen, ...]
    trials: tuple[PlannedTrial, ...]
    smallest_effect: float | None = None
    searched_until: str = ""
    test_splits: tuple[str, ...] = ()
    tuned_trials: tuple[PlannedTrial, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    has_own_cuts: bool = False
    looks: tuple[int, ...] = ()
    is_stopped: bool = False

    def __str__(self) -> str:
        names = ", ".join(f"{found.backbone} {found.identity}" for found in self.chosen)
        effect = "" if self.smallest_effect is None else f", for effects from {self.smallest_effect:g} points"
        images = "" if self.has_own_cuts else ", with the search's validation images held out"
        looks = f", in looks after {' and '.join(map(str, self.looks))} of them" if self.looks else ""
        return f"{names} on seeds {self.seeds[0]} to {self.seeds[-1]}{looks}{effect}{images}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its trials."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))

    @property
    def digest(self) -> str:
        """Of what was fixed, whenever that was."""
        content: dict[str, Any] = to_json(self)
        for item in (*content["trials"], *content["tuned_trials"], *content["tuned"]):
            if item["rank"] == 1:  # ranks came later: where there is only the best, the digest is what it was
                del item["rank"]
        later = ("tuned_trials", "tuned", "has_own_cuts", "looks")  # which count where there are any
        fixed = ("chosen", "trials", "smallest_effect", *(name for name in later if content[name]))
        return digest({name: content[name] for name in fixed})

    @property
    def every_trial(self) -> tuple[PlannedTrial, ...]:
        """All that are run. A control may stand in it twice: at its own best, and at a configuration's settings."""
        return (*self.trials, *self.tuned_trials)

    @property
    def num_trials(self) -> int:
        """How many are run."""
        return len({trial.identity for trial in self.every_trial})

    def extends(self, former: Opening) -> bool:
        """Whether it is a former opening with more seeds, and nothing else."""
        first = [trial for trial in self.every_trial if trial.seed in former.seeds]
        return first == [*former.every_trial] and {*self.seeds} > {*former.seeds}

    def is_complete(self, records: Mapping[str, TrialRecord]) -> bool:
        """Whether every trial has ended."""
        return all(trial.identity in records for trial in self.every_trial)

    def at_first_look(self) -> Opening:
        """The same with the trials of its first look alone."""
        first = {*self.seeds[: self.looks[0]]}
        trials, tuned = ([trial for trial in found if trial.seed in first] for found in (self.trials, self.tuned_trials))
        return dataclasses.replace(self, trials=tuple(trials), tuned_trials=tuple(tuned), is_stopped=True)

    @property
    def looked_at(self) -> Opening:
        """The same without what was left out when its first look gave the answer."""
        return self.at_first_look() if self.is_stopped else self


Plan = Sequence[tuple[Chosen, ResolvedTrial]]
"""Trials of a confirmation, each with the configuration that it belongs to."""


def confirming(config: StudyConfig, plan: Plan) -> StudyConfig:
    """The study that runs the trials of a confirmation of ``config``, each once: configurations may share a control."""
    return dataclasses.replace(
        config,
        name=f"{config.name}{CONFIRM}",
        num_trials=0,
        controls=(),
        controls_search="none",
        confirmed=tuple({trial.identity: trial.config for _, trial in plan}.values()),
        scheduler=SchedulerConfig(),
        warm_start_from=(),
    )


def opening_of(
    plan: Plan,
    smallest_effect: float,
    searched: Iterable[TrialRecord] = (),
    test_splits: tuple[str, ...] = (),
    *,
    tuned_trials: Plan = (),
    tuned: Sequence[Tuned] = (),
    looks: tuple[int, ...] = (),
) -> Opening:
    """What is fixed now, chosen from the trials that were ``searched``."""
    return Opening(
        opened=utc_now(),
        smallest_effect=smallest_effect,
        searched_until=max((row.ended for row in searched), default=""),
        test_splits=test_splits,
        chosen=tuple({found.identity: found for found, _ in plan}.values()),
        trials=_planned(plan),
        tuned_trials=_planned(tuned_trials, [item.rank for item in tuned]),
        tuned=tuple(tuned),
        looks=looks,
        has_own_cuts=all(with_own_cuts(trial.config, trial.config.seed) == trial.config for _, trial in plan),
    )


def _planned(plan: Plan, ranks: Iterable[int] = (1,)) -> tuple[PlannedTrial, ...]:
    """The trials of a plan, each seed of which has those of these ranks, in this order."""
    return tuple(
        PlannedTrial(
            chosen=found.identity, control=trial.config.control, seed=trial.config.seed, identity=trial.identity, rank=rank
        )
        for (found, trial), rank in zip(plan, itertools.cycle(ranks), strict=False)
    )


def read_openings(files: Files) -> list[Opening]:
    """The openings of the confirmation in a folder, the first one first.

    Raises:
        StorageError: for a plan that cannot be read.
    """
    try:
        return [from_json(Opening, item) for item in unseal(files.read(PLAN))["openings"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"Restore {PLAN} of {files.uri!r}, without which nothing says what was fixed before the test set was opened: it "
            f"must be as emoreg wrote it, but it cannot be read ({error})"
        ) from error


def write_openings(files: Files, openings: Iterable[Opening]) -> None:
    """Fix what is to be run."""
    files.write(PLAN, seal({"openings": [to_json(item) for item in openings]}))


def with_opening(openings: Sequence[Opening], asked: Opening, *, is_open: bool, again: bool) -> list[Opening]:
    """All openings, the one that is asked for last: it is the last one, takes its place or comes after it.

    Raises:
        ConfigError: for something else than was fixed, where that ``is_open``, unless a further opening is wanted.
    """
    if openings and openings[-1].digest == asked.digest:
        return [*openings]
    if not openings or not is_open:
        return [*openings[:-1], asked]
    if not again:
        raise ConfigError(
            "Give the former --top, --seeds, --looks, --smallest-effect and study, or --again to open the test set once more, "
            "which the report will tell: what a confirmation runs is fixed before the test set is opened, but it was opened "
            f"for {openings[-1]}, and now it is to be {asked}"
        )
    return [*openings, asked]
