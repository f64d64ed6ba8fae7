"""How a study stands, from its records, also while it runs: answered in a second, without torch, Ray, SciPy or Optuna.

Records know what has ended. What runs now is known to the driver alone, which leaves it in ``records/live.RUN.json`` every few
seconds. A killed driver leaves that file behind: whether one lives is told by the study's lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from emoreg.config import BudgetConfig, ResolvedTrial, StudyConfig, Value, from_json
from emoreg.config.arms import arms
from emoreg.config.search_space import num_searched
from emoreg.formatting import control_name
from emoreg.results.analysis import Tally, TrialSummary, device_hours, num_planned, objective_value, waiting_share
from emoreg.results.plan import read_openings
from emoreg.results.records import EpochRecord, Role, RunRecord, TrialRecord
from emoreg.results.requests import enqueued
from emoreg.results.written import read_written, stored_rows
from emoreg.storage.files import Files
from emoreg.storage.locks import is_held
from emoreg.storage.sealed import unseal

State = Literal["running", "ended", "killed", "not run"]
"""``killed``: it stopped without a word. How one ended that did say so is its ``ending``."""

STALE_SECONDS = 20.0
"""A driver in a database that has not been heard of for so long is dead."""
Beside = tuple[str, str]
"""Backbone and control of a trial beside the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTrial:
    """A trial that runs. ``stage`` is None until its first epoch has ended; ``epochs`` is the stage's number of them."""

    identity: str
    role: Role
    control: str
    backbone: str
    stage: str | None = None
    epoch: int = 0
    epochs: int | None = None
    accuracy: float | None = None

    @classmethod
    def of(cls, trial: ResolvedTrial, role: Role, row: EpochRecord | None = None) -> RunningTrial:
        """A trial that has begun, or whose newest epoch has this row."""
        config = trial.config
        running = cls(identity=trial.identity, role=role, control=config.control, backbone=config.backbone)
        if row is None:
            return running
        epochs = config.pretraining.total_epochs if row.stage == "pretraining" else config.regulation.epochs
        return replace(running, stage=row.stage, epoch=row.epoch, epochs=epochs, accuracy=row.val_accuracy)

    @property
    def what(self) -> str:
        """What a reader calls it."""
        if self.role != "search":
            return control_name(self.control)
        return "search" if self.control == "regulated" else f"search of {control_name(self.control)}"

    @property
    def where(self) -> str:
        """What it is and how far it has come, in a line."""
        return f"{self.what} {self.backbone} {self.stage or 'starting'} {self.progress}".rstrip()

    @property
    def progress(self) -> str:
        """How much of its stage is done, in words."""
        return "" if self.stage is None else f"{self.epoch}/{self.epochs}"

    @property
    def done(self) -> float:
        """The part that is done, in [0, 1], by its epochs of regulation: those of pre-training may be another trial's."""
        return self.epoch / self.epochs if self.stage == "regulation" and self.epochs else 0.0

    @property
    def score(self) -> str:
        """The accuracy in percent, in words."""
        return "" if self.accuracy is None else f"{100 * self.accuracy:.1f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What runs in a driver, as it leaves it for others at ``time``: how many can, which do, how many wait for others."""

    time: str
    slots: int
    waiting: int
    running: tuple[RunningTrial, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """Trials of the search and beside it, counted. ``planned``: at most, as a sampler may propose one again."""

    planned: int
    finished: int
    pruned: int
    failed: int
    ended: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best finished trial of the search by the study's first objective."""

    identity: str
    number: int
    backbone: str
    metric: str
    value: float
    params: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """How much of a confirmation is done: trials, a seed each, of one control of one backbone that finished."""

    backbone: str
    control: str
    finished: int
    planned: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How much of a control's own search is done: trials that ended, of those planned at most; its best validation value."""

    control: str
    ended: int
    planned: int
    best: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How a study stands. None: not known, or there is none.

    Attributes:
        ending: of the last run: completed, interrupted or aborted.
        stop_reason: of the last run, where it stopped before its budget or Slurm's time ended.
        num_runs: times that it was run.
        started: the last run, ISO 8601 UTC; None while a driver that has just begun has not said so.
        last_ended: the last trial that ended, ISO 8601 UTC.
        running: what runs now; None where that is not known.
        num_waiting: trials that wait for an experience which another is training.
        slots: trials that can run at once.
        waiting_share: of the slots' time, over all runs, in [0, 1].
        device_hours: of all runs together.
        budget: of the study.
        seconds_left: at the pace of this run.
        enqueued: values by path of the trials that somebody wants to be tried first.
        confirmation: what is done of one; None for a search.
        searches: what is done of the controls' own searches.
    """

    name: str
    place: str
    state: State
    ending: str | None
    stop_reason: str | None
    num_runs: int
    started: str | None
    last_ended: str | None
    trials: Trials
    running: tuple[RunningTrial, ...] | None
    num_waiting: int | None
    best: Best | None
    slots: int | None
    waiting_share: float | None
    device_hours: float
    budget: BudgetConfig
    seconds_left: float | None
    enqueued: tuple[Mapping[str, Value], ...]
    confirmation: tuple[Seeds, ...] | None
    searches: tuple[Search, ...] = ()

    @property
    def used(self) -> str:
        """What of a budget for all runs is used, in words: "3.2 of 10 device hours used"; empty where there is none."""
        hours, budget = self.device_hours, self.budget
        parts = [] if budget.device_hours is None else [f"{hours:.3g} of {budget.device_hours:g} device hours used"]
        if budget.price_per_hour is not None:
            most = "" if budget.cost is None else f" of {budget.cost:g}"
            parts.append(f"{hours * budget.price_per_hour:.2f}{most} spent, at {budget.price_per_hour:g} an hour")
        return ", ".join(parts)


def read_status(place: str) -> Status:
    """How the study in a folder or at a URI stands. Nothing is written, and a driver is not disturbed.

    Raises:
        ConfigError: where there is no study.
        StorageError: where its files cannot be read.
    """
    files = Files(place)
    config = read_written(files).config
    rows = stored_rows(files, "trials", TrialSummary) or []
    runs = sorted(stored_rows(files, "runs", RunRecord) or [], key=lambda run: run.run)
    beside = trials_beside(files, config, rows)
    tally = Tally(config.objectives[0], beside.keys(), rows)
    counts = tally.statuses
    live = {run.run: _read_live(files, run.run) for run in runs if run.ended is None}
    driven = _driven(files, config, live)
    current = [run for run in runs if run.run in driven] if driven is not None else runs[-1:]
    ending = runs[-1].ending if runs and driven is None else None
    state: State = "running" if driven is not None else "not run" if not runs else "killed" if ending is None else "ended"
    told = [found for run in current if (found := live.get(run.run)) is not None] if state == "running" else []
    planned = len(tally.trials) if ending == "completed" else num_planned(config)
    going_on = [(age(run.started), run.num_trials, found.running if (found := live.get(run.run)) else ()) for run in current]
    return Status(
        name=config.name,
        place=files.uri,
        state=state,
        ending=ending,
        stop_reason=runs[-1].stop_reason if runs and driven is None else None,
        num_runs=len(runs),
        started=min((run.started for run in current), default=None),
        last_ended=max((trial.ended for trial in tally.trials), default=None),
        trials=Trials(
            planned=planned,
            finished=counts["finished"],
            pruned=counts["pruned"],
            failed=counts["failed"],
            ended=len(tally.trials),
        ),
        running=None if state == "running" and not told else tuple(trial for found in told for trial in found.running),
        num_waiting=sum(found.waiting for found in told) if told else None,
        best=_best(config, tally),
        slots=sum(found.slots for found in told) or (None if told or not runs else runs[-1].slots or None),
        waiting_share=waiting_share(runs) if any(run.slot_seconds for run in runs) else None,
        device_hours=device_hours(config, runs),
        budget=config.budget,
        seconds_left=seconds_left(planned - len(tally.trials), going_on) if state == "running" else None,
        enqueued=tuple(trial.params for trial in enqueued(files)),
        confirmation=_seeds(beside, tally) if config.confirmed else None,
        searches=tuple(_searches(config, rows)),
    )


def seconds_left(num_left: int, runs: Iterable[tuple[float, int, Iterable[RunningTrial]]]) -> float | None:
    """When the last trial will have ended, at the pace of runs that go on; None until one of them has ended a trial.

    Args:
        num_left: trials that have not ended.
        runs: of each the seconds that it has lasted, the trials that it has ended, and those that it runs.
    """
    pace, begun, num_ended = 0.0, 0.0, 0
    for seconds, ended, running in runs:
        share = sum(trial.done for trial in running)
        pace, begun, num_ended = pace + (ended + share) / max(seconds, 1e-9), begun + share, num_ended + ended
    return max(0.0, num_left - begun) / pace if num_ended else None


def trials_beside(files: Files, config: StudyConfig, rows: Iterable[TrialSummary | TrialRecord]) -> dict[str, Beside]:
    """Backbone and control of the trials beside a study's search, by identity.

    They are the controls that have ended or, of a confirmation, all that its last opening is to run.
    """
    if not config.confirmed:
        planned = {(trial.backbone, trial.control, trial.seed) for trial in config.control_trials()}
        controls = [row for row in rows if row.role == "control" and (row.backbone, row.control, row.seed) in planned]
        return {row.identity: (row.backbone, row.control) for row in controls}
    found: dict[str, Beside] = {}
    for opening in read_openings(files)[-1:]:
        backbones = {chosen.identity: chosen.backbone for chosen in opening.chosen}
        found |= {trial.identity: (backbones[trial.chosen], trial.control) for trial in opening.looked_at.every_trial}
    return found


def live_name(run: int | str) -> str:
    """The file in which a run leaves what it does, within the study's folder."""
    return f"records/live.{run}.json"


def parse_live(content: bytes) -> Live | None:
    """What a driver has left; None where it is damaged."""
    try:
        return from_json(Live, unseal(content))
    except (ValueError, TypeError, AttributeError):
        return None


def _read_live(files: Files, run: int) -> Live | None:
    with suppress(FileNotFoundError):
        return parse_live(files.read(live_name(run)).to_pybytes())
    return None


def _driven(files: Files, config: StudyConfig, live: Mapping[int, Live | None]) -> list[int] | None:
    """Which of the runs without an end go on; None where no driver lives."""
    if (config.optuna_storage or "").startswith("postgresql"):  # several drivers, and no lock on the folder
        return [run for run, found in live.items() if found is not None and age(found.time) < STALE_SECONDS] or None
    return sorted(live)[-1:] if is_held(files) else None


def age(moment: str) -> float:
    """Seconds since a time of the records; a clock that is ahead has no say."""
    return max(1e-3, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _best(config: StudyConfig, tally: Tally[TrialSummary]) -> Best | None:
    best, objective = tally.best, config.objectives[0]
    value = None if best is None else objective_value(best, objective)
    if best is None or best.number is None or value is None:
        return None
    return Best(
        identity=best.identity,
        number=best.number,
        backbone=best.backbone,
        metric=objective.metric,
        value=value,
        params=json.loads(best.params),
    )


def _searches(config: StudyConfig, rows: Iterable[TrialSummary]) -> Iterator[Search]:
    found, objective = [*rows], config.objectives[0]
    for arm in arms(config):
        own = [row for row in found if row.search_of == arm.trial.control and row.number is not None]
        values = [value for row in own if row.status == "finished" and (value := objective_value(row, objective)) is not None]
        pick = max if objective.mode == "max" else min
        best = pick(values) if values else None
        yield Search(control=arm.trial.control, ended=len(own), planned=num_searched(arm), best=best)


def _seeds(planned: Mapping[str, Beside], tally: Tally[TrialSummary]) -> tuple[Seeds, ...]:
    finished = Counter(planned[trial.identity] for trial in tally.trials if trial.status == "finished")
    return tuple(
        Seeds(backbone=backbone, control=control, finished=finished[backbone, control], planned=count)
        for (backbone, control), count in Counter(planned.values()).items()
    )
