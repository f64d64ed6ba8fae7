"""What a confirmation runs: it is fixed before the test set is opened. Imports neither torch nor Ray.

The configurations are the best of the search by backbone, chosen on validation. Each is trained on fresh seeds beside every
control, on the same seeds, and each of these trials opens the test set once, at its end. A confirmation is a study of its own,
``NAME.confirm``, on the same engine; its ``plan.json`` says what was chosen, and when.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import (
    CONFIRM,
    CONTROLS,
    ImageSetConfig,
    RegulationConfig,
    ResolvedTrial,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    Value,
    from_json,
    resolve_trial,
    to_json,
)
from emoreg.config.resolved import UNKNOWN, Fingerprints
from emoreg.config.search_space import resolve
from emoreg.errors import ConfigError, StorageError
from emoreg.results.analysis import ranked_by_backbone
from emoreg.results.records import TrialRecord, utc_now
from emoreg.storage.files import Files
from emoreg.storage.sealed import digest, seal, unseal

PLAN = "plan.json"

_FORWARD = 1 / 3  # of a training step's cost, a forward pass


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrial:
    """A trial of a confirmation: its own identity, and that of the chosen configuration which it belongs to, as what."""

    chosen: str
    control: str
    seed: int
    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """One opening of the test set, and what was fixed before it.

    Attributes:
        opened: when it was begun, UTC.
        chosen: what is confirmed.
        trials: all that are run.
        smallest_effect: the least that matters, in points; None where none was declared.
        searched_until: when the last trial ended that the choice was made from, UTC.
        test_splits: by which ledgers of openings know them; none where an emoreg without ledgers opened them.
    """

    opened: str
    chosen: tuple[Chosen, ...]
    trials: tuple[PlannedTrial, ...]
    smallest_effect: float | None = None
    searched_until: str = ""
    test_splits: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(f"{found.backbone} {found.identity}" for found in self.chosen)
        effect = "" if self.smallest_effect is None else f", for effects from {self.smallest_effect:g} points"
        return f"{names} on seeds {self.seeds[0]} to {self.seeds[-1]}{effect}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its trials."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))

    @property
    def digest(self) -> str:
        """Of what was fixed, whenever that was."""
        content = to_json(self)
        return digest({name: content[name] for name in ("chosen", "trials", "smallest_effect")})

    def is_complete(self, records: Mapping[str, TrialRecord]) -> bool:
        """Whether every trial has ended."""
        return all(trial.identity in records for trial in self.trials)


Plan = Sequence[tuple[Chosen, ResolvedTrial]]
"""Trials of a confirmation, each with the configuration that it belongs to."""


def choose(config: StudyConfig, records: Iterable[TrialRecord], top: int) -> tuple[Chosen, ...]:
    """The ``top`` configurations of the search, by backbone and task, by its first objective on validation.

    Raises:
        ConfigError: where no trial of the search has finished.
    """
    by_task: dict[str, list[TrialRecord]] = {}
    for row in records:
        by_task.setdefault(row.task, []).append(row)
    ranked = {
        (backbone, task): found[:top]
        for task, rows in by_task.items()
        for backbone, found in ranked_by_backbone(rows, config.objectives[0]).items()
    }
    if not ranked:
        raise ConfigError(f"Run the study first: {config.name!r} has no finished trial of the search that could be confirmed")
    has_tasks = len({task for _, task in ranked}) > 1
    return tuple(
        Chosen(
            identity=record.identity,
            backbone=backbone,
            rank=rank,
            val_accuracy=record.val_accuracy,
            params=record.sampled,
            task=task if has_tasks else None,
        )
        for backbone, task in sorted(ranked)
        for rank, record in enumerate(ranked[backbone, task], 1)
    )


def check_unchanged(config: StudyConfig, chosen: Iterable[Chosen], fingerprints: Fingerprints = UNKNOWN) -> None:
    """Refuse to confirm what the study, as it is now, would not have run.

    Raises:
        ConfigError: naming what has changed.
    """
    for found in chosen:
        for path in found.params.keys() - config.search_space.keys():
            raise ConfigError(f"Leave out {path}, which was searched and is set now: a confirmation runs what the search ran")
        if resolve_trial(resolve(config.trial, found.params), fingerprints).identity != found.identity:
            raise ConfigError(
                "Undo the change of the study, or search anew under another name: a confirmation runs what the search ran, but "
                f"trial {found.identity} had other settings than the study gives it now"
            )


def fresh_seeds(config: StudyConfig, records: Iterable[TrialRecord], num_seeds: int, first: int) -> tuple[int, ...]:
    """Seeds that nothing was chosen with.

    Raises:
        ConfigError: where one of them was used in the search.
    """
    seeds = tuple(range(first, first + num_seeds))
    used = sorted({config.trial.seed, *config.control_seeds, *(row.seed for row in records)} & {*seeds})
    if used:
        raise ConfigError(
            f"Give another --first-seed: a confirmation needs fresh seeds, but the search has used {', '.join(map(str, used))}"
        )
    return seeds


def plan_trials(
    config: StudyConfig,
    chosen: Sequence[Chosen],
    seeds: Sequence[int],
    *,
    images: Callable[[ImageSetConfig], int],
    fingerprints: Fingerprints = UNKNOWN,
) -> Plan:
    """Every trial of an opening, with what it belongs to; seeds outermost, so that one seed is whole before the next.

    The ``compute_matched`` control takes as many images through its one encoder as pre-training and regulation take through
    theirs; ``images`` counts those in an epoch of a set.
    """
    controls = [name for name, control in CONTROLS.items() if getattr(config.trial, control.images) is not None]
    planned = []
    for seed in seeds:
        for found in chosen:
            base = dataclasses.replace(resolve(config.trial, found.params), seed=seed)
            passes = base.regulation.epochs * _num_encoders(base.regulation) * images(base.task)
            if base.regulation.needs_emotional:
                passes += base.pretraining.epochs * images(base.stimuli)
            longer = dataclasses.replace(base.regulation, epochs=math.ceil(passes / images(base.task)))
            for control in controls:
                regulation = longer if control == "compute_matched" else base.regulation
                trial = dataclasses.replace(base, control=control, regulation=regulation)
                planned.append((found, resolve_trial(trial, fingerprints)))
    return planned


def confirming(config: StudyConfig, plan: Plan) -> StudyConfig:
    """The study that runs the trials of a confirmation of ``config``, each once: configurations may share a control."""
    return dataclasses.replace(
        config,
        name=f"{config.name}{CONFIRM}",
        num_trials=0,
        controls=(),
        confirmed=tuple({trial.identity: trial.config for _, trial in plan}.values()),
        scheduler=SchedulerConfig(),
        warm_start_from=(),
    )


def expected_seconds(plan: Plan, searched: Mapping[str, TrialRecord]) -> float:
    """Seconds of the device that the trials will take, by what those of the search took: each pre-training is paid once."""
    chosen = {found.identity for found, _ in plan}
    ran = {identity: from_json(TrialConfig, json.loads(searched[identity].config)) for identity in chosen}
    regulation: dict[str, float] = {}
    pretraining: dict[object, float] = {}
    for found, trial in plan:
        record, config = searched[found.identity], trial.config
        an_epoch = record.regulation_seconds / max(1, record.regulation_epochs)  # of as many encoders as the search's had
        encoders = _num_encoders(config.regulation) / _num_encoders(ran[found.identity].regulation)
        regulation[trial.identity] = an_epoch * config.regulation.epochs * encoders
        if trial.needs_pretraining:
            schedule = dataclasses.replace(config.pretraining, epochs=0)
            shared = (config.backbone, trial.images_of_pretraining, config.seed, schedule)
            pretraining[shared] = max(record.experience_seconds or 0.0, pretraining.get(shared, 0.0))
    return math.fsum(regulation.values()) + math.fsum(pretraining.values())


def _num_encoders(regulation: RegulationConfig) -> float:
    """Encoders that an image goes through, forward and backward: forward alone, as through a frozen one, is a third."""
    emotional = _FORWARD if regulation.is_emotion_frozen else 1.0
    return regulation.needs_plain + emotional * regulation.needs_emotional


def opening_of(
    plan: Plan, smallest_effect: float, searched: Iterable[TrialRecord] = (), test_splits: tuple[str, ...] = ()
) -> Opening:
    """What is fixed now, chosen from the trials that were ``searched``."""
    return Opening(
        opened=utc_now(),
        smallest_effect=smallest_effect,
        searched_until=max((row.ended for row in searched), default=""),
        test_splits=test_splits,
        chosen=tuple({found.identity: found for found, _ in plan}.values()),
        trials=tuple(
            PlannedTrial(chosen=found.identity, control=trial.config.control, seed=trial.config.seed, identity=trial.identity)
            for found, trial in plan
        ),
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
            "Give the former --top, --seeds, --smallest-effect and study, or --again to open the test set once more, which the "
            "report will tell: what a confirmation runs is fixed before the test set is opened, but it was opened for "
            f"{openings[-1]}, and now it is to be {asked}"
        )
    return [*openings, asked]
