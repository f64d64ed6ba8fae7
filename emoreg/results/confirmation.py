"""From the best of many to a claim: what a confirmation runs, and what its test accuracies say. Imports neither torch nor Ray.

The configurations are fixed before the test split is opened: the best of the search by backbone, chosen on validation. Each is
trained on fresh seeds beside every control, on the same seeds, and each of these trials opens the test split once, at its end.
A confirmation is a study of its own, ``NAME.confirm``, on the same engine; its ``plan.json`` says what was chosen, and when.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emoreg.config import (
    CONFIRM,
    CONTROLS,
    ImageSetConfig,
    RegulationConfig,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    Value,
    in_order,
)
from emoreg.config.search_space import resolve
from emoreg.errors import ConfigError, StorageError
from emoreg.results.analysis import Estimate, estimate, ranked_by_backbone
from emoreg.results.records import TrialRecord, utc_now
from emoreg.results.statistics import Comparison, Verdict, compare, judge
from emoreg.storage.files import replacing

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A trial of a confirmation: which chosen configuration it belongs to, as what, and its own identity."""

    chosen: str
    control: str
    seed: int
    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look at the test split: configurations and seeds that were fixed before it.

    Attributes:
        opened: when it was begun, UTC.
    """

    opened: str
    seeds: tuple[int, ...]
    chosen: tuple[Chosen, ...]
    trials: tuple[Planned, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One configuration, as regulation or as a control, over the seeds that have finished."""

    chosen: Chosen
    control: str
    accuracy: Estimate
    comparison: Comparison | None
    """Regulation against this control; None for regulation itself."""


def confirming(config: StudyConfig, trials: Sequence[TrialConfig]) -> StudyConfig:
    """The study that runs these trials of a confirmation of ``config``, each once: configurations may share a control."""
    return dataclasses.replace(
        config,
        name=f"{config.name}{CONFIRM}",
        num_trials=0,
        controls=(),
        confirmed=tuple({trial.identity: trial for trial in trials}.values()),
        scheduler=SchedulerConfig(),
        warm_start_from=(),
    )


def choose(config: StudyConfig, records: Iterable[TrialRecord], top: int) -> tuple[Chosen, ...]:
    """The best configurations of the search, by backbone and task, by its first objective on validation.

    Args:
        config: the study.
        records: its trials.
        top: how many of each backbone, on each task that was searched.

    Raises:
        ConfigError: where no trial of the search has finished, or one was run by a configuration that is not the study's now.
    """
    rows = list(records)
    tasks = sorted({row.task for row in rows if row.number is not None and row.status == "finished"})
    ranked = {
        (backbone, task): found
        for task in tasks
        for backbone, found in ranked_by_backbone((row for row in rows if row.task == task), config.objectives[0]).items()
    }
    if not ranked:
        raise ConfigError(
            f"a confirmation takes the best of a search, but no trial of the search of {config.name!r} has finished: run the "
            "study first"
        )
    chosen = []
    for backbone, task in sorted(ranked):
        for rank, record in enumerate(ranked[backbone, task][:top], 1):
            params = record.sampled
            for path in params.keys() - config.search_space.keys():
                raise ConfigError(
                    f"a confirmation runs what the search ran, but {path} was searched, and is set now: leave it out"
                )
            if resolve(config.trial, params).identity != record.identity:
                raise ConfigError(
                    f"a confirmation runs what the search ran, but trial {record.identity} had other settings than the study "
                    "gives it now: undo the change of the study, or search anew under another name"
                )
            chosen.append(
                Chosen(
                    identity=record.identity,
                    backbone=backbone,
                    rank=rank,
                    val_accuracy=record.val_accuracy,
                    params=params,
                    task=task if len(tasks) > 1 else None,
                )
            )
    return tuple(chosen)


def fresh_seeds(config: StudyConfig, records: Iterable[TrialRecord], num_seeds: int, first: int) -> tuple[int, ...]:
    """Seeds that nothing was chosen with.

    Args:
        config: the study.
        records: its trials.
        num_seeds: how many.
        first: of them.

    Raises:
        ConfigError: where one of them was used in the search.
    """
    seeds = tuple(range(first, first + num_seeds))
    used = sorted({config.trial.seed, *config.control_seeds, *(row.seed for row in records)} & {*seeds})
    if used:
        raise ConfigError(
            f"a confirmation needs fresh seeds, but the search has used {', '.join(map(str, used))}: give another --first-seed"
        )
    return seeds


def plan_trials(
    config: StudyConfig, chosen: Sequence[Chosen], seeds: Sequence[int], *, images: Callable[[ImageSetConfig], int]
) -> list[tuple[Chosen, TrialConfig]]:
    """Every trial of a look, with what it belongs to; seeds outermost, so that one seed is whole before the next.

    The ``matched`` control gets as many further images of the task as pre-training took of the stimuli.

    Args:
        config: the study.
        chosen: configurations.
        seeds: the same for all.
        images: counts those in an epoch of a set.
    """
    controls = [name for name, entry in CONTROLS.items() if getattr(config.trial, entry.images) is not None]
    planned = []
    for seed in seeds:
        for found in chosen:
            base = dataclasses.replace(resolve(config.trial, found.params), seed=seed)
            further = math.ceil(base.pretraining.epochs * images(base.stimuli) / images(base.task))
            longer = dataclasses.replace(base.regulation, epochs=base.regulation.epochs + further)
            for control in controls:
                regulation = longer if control == "compute_matched" else base.regulation
                planned.append((found, dataclasses.replace(base, control=control, regulation=regulation)))
    return planned


def expected_seconds(planned: Iterable[tuple[Chosen, TrialConfig]], searched: Mapping[str, TrialRecord]) -> float:
    """Seconds of the device that the trials will take, by what those of the search took: each pre-training is paid once.

    Args:
        planned: with what each belongs to.
        searched: the trials of the search, by identity.
    """
    regulation: dict[str, float] = {}
    pretraining: dict[object, float] = {}
    for found, trial in planned:
        record, applied = searched[found.identity], trial.applied()
        an_epoch = record.regulation_seconds / max(1, record.regulation_epochs)  # of as many encoders as the search's had
        encoders = _num_encoders(applied.regulation) / _num_encoders(trial.regulation)
        regulation[trial.identity] = an_epoch * applied.regulation.epochs * encoders
        if applied.regulation.needs_emotional and applied.pretraining.epochs:
            stimuli = applied.neutral if trial.control == "neutral" else applied.stimuli
            trunk = (applied.backbone, stimuli, trial.seed, dataclasses.replace(applied.pretraining, epochs=0))
            pretraining[trunk] = max(record.experience_seconds or 0.0, pretraining.get(trunk, 0.0))
    return math.fsum(regulation.values()) + math.fsum(pretraining.values())


def _num_encoders(regulation: RegulationConfig) -> int:
    return regulation.needs_plain + regulation.needs_emotional


def look_of(planned: Sequence[tuple[Chosen, TrialConfig]]) -> Look:
    """What is fixed now."""
    trials = tuple(
        Planned(chosen=found.identity, control=trial.control, seed=trial.seed, identity=trial.identity)
        for found, trial in planned
    )
    return Look(
        opened=utc_now(),
        seeds=tuple(dict.fromkeys(trial.seed for trial in trials)),
        chosen=tuple({found.identity: found for found, _ in planned}.values()),
        trials=trials,
    )


def read_looks(folder: Path) -> list[Look]:
    """The looks of the confirmation in a folder, the first one first.

    Raises:
        StorageError: for a plan that cannot be read.
    """
    path = folder / PLAN
    if not path.exists():
        return []
    try:
        return [
            Look(
                opened=look["opened"],
                seeds=tuple(look["seeds"]),
                chosen=tuple(Chosen(**item) for item in look["chosen"]),
                trials=tuple(Planned(**item) for item in look["trials"]),
            )
            for look in json.loads(path.read_text())["looks"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"a confirmation's plan must be as emoreg wrote it, but {path} cannot be read ({error}): restore it; without it "
            "nothing says what was fixed before the test split was opened"
        ) from error


def with_look(looks: Sequence[Look], look: Look, *, is_open: bool, again: bool) -> list[Look]:
    """All looks, the one that is asked for last: it is the last one, takes its place or comes after it.

    Args:
        looks: so far.
        look: what is asked for.
        is_open: whether what the last one fixed has begun to open the test split.
        again: whether a further look is wanted.

    Raises:
        ConfigError: for something else than was fixed, unless a further look is wanted.
    """
    if looks and looks[-1].trials == look.trials:
        return [*looks]
    if not looks or not is_open:
        return [*looks[:-1], look]
    if not again:
        raise ConfigError(
            "what a confirmation runs is fixed before the test split is opened, but it was opened for "
            f"{_describe(looks[-1])}, and now it is to be {_describe(look)}: give the former --top, --seeds and study, or "
            "--again for a further look, which the report will tell of"
        )
    return [*looks, look]


def write_looks(folder: Path, looks: Iterable[Look]) -> None:
    """Fix what is to be run."""
    content = {"looks": [dataclasses.asdict(item) for item in looks]}
    with replacing(folder / PLAN) as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")


def opened_beside(looks: Iterable[Look], records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Trials that have opened the test split though no look planned them: `emoreg trial --evaluate test` does so."""
    planned = {trial.identity for look in looks for trial in look.trials}
    return [row for row in records if row.test_accuracy is not None and row.identity not in planned]


def is_whole(look: Look, records: Mapping[str, TrialRecord]) -> bool:
    """Whether every trial of a look has ended."""
    return all(trial.identity in records for trial in look.trials)


def rows_of(look: Look, records: Mapping[str, TrialRecord]) -> list[Row]:
    """What a look has found: each configuration beside its controls, compared over the seeds that both have finished.

    All comparisons of the look are one family. None are made before the look is whole: who tests in between and stops where he
    likes what he sees would make false claims more often than the statistics allow for.
    """
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    for trial in look.trials:
        record = records.get(trial.identity)
        if record is not None and record.status == "finished" and record.test_accuracy is not None:
            accuracies.setdefault((trial.chosen, trial.control), {})[trial.seed] = record.test_accuracy
    family: dict[tuple[str, str], list[float]] = {}
    for (identity, control), by_seed in accuracies.items():
        regulated = accuracies.get((identity, "regulated"), {})
        common = sorted(regulated.keys() & by_seed.keys())
        if control != "regulated" and common:
            family[identity, control] = [regulated[seed] - by_seed[seed] for seed in common]
    compared: dict[tuple[str, str], Comparison] = compare(family) if is_whole(look, records) else {}
    return [
        Row(
            chosen=found,
            control=control,
            accuracy=estimate(list(accuracies[found.identity, control].values())),
            comparison=compared.get((found.identity, control)),
        )
        for found in look.chosen
        for control in in_order(trial.control for trial in look.trials)
        if (found.identity, control) in accuracies
    ]


def verdicts(look: Look, rows: Sequence[Row], records: Mapping[str, TrialRecord]) -> dict[str, Verdict]:
    """What may be said of each chosen configuration, by its identity: nothing before the look is whole.

    Nothing either where regulation diverged on a seed: to leave that seed out would be to choose by the outcome. A control that
    diverged is compared on its other seeds, which flatters it, and the sentence says so.

    Args:
        look: at the test split.
        rows: what it has found.
        records: of its trials, by identity.
    """
    if not is_whole(look, records):
        num_ended = sum(trial.identity in records for trial in look.trials)
        why = f"nothing can be said yet: {num_ended} of {len(look.trials)} planned trials have ended"
        return {found.identity: Verdict("nothing can be said", f"{found.name}: {why}") for found in look.chosen}
    return {found.identity: _verdict(look, found, rows, records) for found in look.chosen}


def _verdict(look: Look, found: Chosen, rows: Sequence[Row], records: Mapping[str, TrialRecord]) -> Verdict:
    diverged = Counter(
        trial.control for trial in look.trials if trial.chosen == found.identity and records[trial.identity].status == "pruned"
    )
    if diverged["regulated"]:
        why = f"regulation diverged on {diverged['regulated']} of {len(look.seeds)} seeds, which cannot be left out"
        return Verdict("nothing can be said", f"{found.name}: nothing can be said: {why}")
    verdict = judge(
        {row.control: row.comparison for row in rows if row.chosen == found and row.comparison is not None}, found.name
    )
    left_out = "".join(
        f"; {control} diverged on {count} of {len(look.seeds)} seeds, which are left out" for control, count in diverged.items()
    )
    return Verdict(verdict.says, verdict.sentence + left_out)


def _describe(look: Look) -> str:
    names = ", ".join(f"{found.backbone} {found.identity}" for found in look.chosen)
    return f"{names} on seeds {look.seeds[0]} to {look.seeds[-1]}"
