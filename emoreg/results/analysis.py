"""What a study's trials come to: the best, the Pareto front, counts and device time.

Whoever shows one of these (progress, status, TensorBoard, the report) takes it from here. Needs neither torch nor Ray.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from emoreg.config import CONTROLS, Objective, ResolvedTrial, StudyConfig, TrialConfig, from_json, resolve_trial
from emoreg.config.arms import arms
from emoreg.config.search_space import num_searched
from emoreg.config.sharing import least_epochs
from emoreg.results.outcome import Status
from emoreg.results.records import EpochRecord, Role, RunRecord, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSummary:
    """The columns of a ``TrialRecord`` that tell how its study stands: of thousands of trials the others take long to read."""

    identity: str
    role: Role
    number: int | None
    control: str
    status: Status
    seed: int
    backbone: str
    params: str
    val_accuracy: float | None
    val_loss: float | None
    device_seconds: float
    metrics: str
    ended: str
    search_of: str | None = None
    repeats: str | None = None

    @property
    def is_searched(self) -> bool:
        """Whether it is of regulation's search: controls may have searches of their own."""
        return self.number is not None and self.search_of is None


Trial = TypeVar("Trial", TrialRecord, TrialSummary)


def objective_value(record: TrialRecord | TrialSummary, objective: Objective) -> float | None:
    """What a trial came to by an objective: a column, or a user-registered metric. None where it has no finite value."""
    known = {"val_accuracy": record.val_accuracy, "val_loss": record.val_loss, "device_seconds": record.device_seconds}
    metric = objective.metric
    value: float | None = known[metric] if metric in known else json.loads(record.metrics).get(metric)
    return value if value is not None and math.isfinite(value) else None


def ranked(records: Iterable[TrialRecord], objective: Objective, *, search_of: str | None = None) -> list[TrialRecord]:
    """The finished trials of the search that have a value of the objective, the best first. Selected: their metric flatters.

    ``search_of`` is the control whose own search it is; None for regulation's.
    """
    valued = (row for row in _finished(records, search_of) if objective_value(row, objective) is not None)
    return sorted(valued, key=lambda row: _cost(row, objective))


def best_by_backbone(
    records: Iterable[TrialRecord], objective: Objective, *, search_of: str | None = None
) -> dict[str, TrialRecord]:
    """The best finished trial of the search, as ``ranked`` has it, for each backbone."""
    best: dict[str, TrialRecord] = {}
    for record in ranked(records, objective, search_of=search_of):
        best.setdefault(record.backbone, record)
    return best


def pareto_front(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The finished trials of the search that no other beats in one objective without losing in another."""
    finished = _finished(records)
    costs = [tuple(_cost(row, objective) for objective in objectives) for row in finished]
    front: list[tuple[float, ...]] = []
    for point in sorted({*costs}):  # what dominates comes before what it dominates
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in reversed(front)):
            front.append(point)
    on_front = {*front}
    return [row for row, point in zip(finished, costs, strict=True) if point in on_front]


def leading(records: Iterable[TrialRecord], objectives: Sequence[Objective], backbones: Sequence[str]) -> list[TrialRecord]:
    """What a search has found: the best trial of each backbone by its objective, or the Pareto front of several objectives."""
    if len(objectives) > 1:
        return pareto_front(records, objectives)
    best = best_by_backbone(records, objectives[0])
    return [best[backbone] for backbone in backbones if backbone in best]


def kept_networks(records: Iterable[TrialRecord], config: StudyConfig) -> set[str]:
    """The ended trials whose files stay, by identity: by ``resources.keep_networks``, and those that failed, which go on.

    "best" is what the search has found, the confirmed configurations on each of their seeds, and what `emoreg trial` ran.
    """
    rows = [*records]
    failed = {row.identity for row in rows if row.status == "failed"}
    finished = [row for row in rows if row.status == "finished"]
    match config.resources.keep_networks:
        case "none":
            return failed
        case "all":
            return failed | {row.identity for row in finished}
        case "best":
            best = leading(finished, config.objectives, config.backbones())
            asked = [row for row in finished if row.role == "trial" or (row.role == "confirm" and row.control == "regulated")]
            return failed | {row.identity for row in (*best, *asked)}


def _finished(records: Iterable[TrialRecord], search_of: str | None = None) -> list[TrialRecord]:
    rows = averaged(records)
    return [row for row in rows if row.number is not None and row.search_of == search_of and row.status == "finished"]


def averaged(records: Iterable[Trial]) -> list[Trial]:
    """The records, those of a proposal with several seeds as one: its first seed's, with the means of all.

    It stands as finished only where all of its seeds that were trained are.
    """
    groups: dict[str, list[Trial]] = {}
    for row in records:
        groups.setdefault(row.repeats or row.identity, []).append(row)
    return [
        first if len(rows) == 1 else dataclasses.replace(first, **_means(rows))
        for identity, rows in groups.items()
        for first in rows
        if first.identity == identity
    ]


def _means(rows: Sequence[TrialRecord | TrialSummary]) -> dict[str, Any]:
    """What the record of a proposal has in common with those of its seeds: means, and the end of one that did not finish."""
    measured = [json.loads(row.metrics) for row in rows]
    metrics = {name: _mean_or_none([found.get(name) for found in measured]) for name in measured[0]}
    means = {
        name: _mean_or_none([getattr(row, name) for row in rows]) for name in ("val_accuracy", "val_loss", "device_seconds")
    }
    ends = [row.status for row in rows if row.status != "finished"]
    return {**means, "metrics": json.dumps(metrics), "status": ends[0] if ends else "finished"}


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if len(there) == len(values) else None


def _cost(record: TrialRecord | TrialSummary, objective: Objective) -> float:
    """The objective's value where small is good; infinite without one."""
    value = objective_value(record, objective)
    return math.inf if value is None else -value if objective.mode == "max" else value


def num_planned(config: StudyConfig) -> int:
    """Trials of a study, at most: a sampler may propose one again."""
    beside: set[object] = {
        # A control that is not registered here is taken to be like no other.
        resolve_trial(trial).identity if trial.control in CONTROLS else (trial.control, trial.backbone, trial.seed)
        for trial in (*config.control_trials(), *config.confirmed)
    }
    proposals = num_searched(config) + sum(map(num_searched, arms(config)))
    return config.seeds_per_trial * proposals + len(beside)


class Tally(Generic[Trial]):
    """The trials of one study that have ended, counted while it goes on. What `emoreg trial` left there is not counted.

    ``best`` is the best finished trial of the search by the objective; None before there is one.
    """

    def __init__(self, objective: Objective, beside: Set[str], trials: Iterable[Trial] = ()) -> None:
        """Begin with trials that have ended; ``beside`` are the identities of controls, or of a confirmation's trials."""
        self._objective, self._beside = objective, beside
        self._trials: dict[str, Trial] = {}
        self.best: Trial | None = None
        self._lowest = math.inf
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> bool:
        """Count a trial, in place of its former record; whether it is the best so far."""
        if trial.role != "search" and trial.identity not in self._beside:
            return False
        self._trials[trial.identity] = trial
        if trial.repeats is not None:  # it changes the mean of another
            return self._find_best()
        cost = _cost(trial, self._objective) if trial.is_searched and trial.status == "finished" else math.inf
        if cost >= self._lowest:
            return False
        self.best, self._lowest = trial, cost
        return True

    def _find_best(self) -> bool:
        """Find the best anew; whether it is another one than before."""
        rows = [row for row in averaged(self._trials.values()) if row.is_searched and row.status == "finished"]
        before, self.best = self.best, min(rows, key=lambda row: _cost(row, self._objective), default=None)
        self._lowest = math.inf if self.best is None else _cost(self.best, self._objective)
        return self.best is not None and (before is None or before.identity != self.best.identity)

    @property
    def trials(self) -> list[Trial]:
        """Those that were counted."""
        return list(self._trials.values())

    @property
    def statuses(self) -> Counter[Status]:
        """How many trials ended as what."""
        return Counter(trial.status for trial in self.trials)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTime:
    """Seconds of the device that trials took.

    Attributes:
        paid: pre-training by the trials themselves.
        reused: of the experience that they took from the store instead, paid for by other trials, of any study.
        regulation: over all attempts.
    """

    paid: float
    reused: float
    regulation: float

    @property
    def total(self) -> float:
        """What was spent."""
        return self.paid + self.regulation

    @property
    def saved(self) -> float:
        """Share of all pre-training that was not paid for again, in [0, 1]; 0 where there was none."""
        return self.reused / (self.paid + self.reused) if self.reused else 0.0


def device_time(records: Iterable[TrialRecord]) -> DeviceTime:
    """Add up what the trials took."""
    rows = [*records]
    return DeviceTime(
        paid=math.fsum(row.pretraining_seconds for row in rows),
        reused=math.fsum(max(0.0, (row.experience_seconds or 0.0) - row.pretraining_seconds) for row in rows),
        regulation=math.fsum(row.regulation_seconds for row in rows),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingEpochs:
    """Epochs of pre-training, cool-downs included: what sharing left of those that trials asked for.

    Attributes:
        asked: by all trials that have had their experience.
        computed: by whomever, experiences of other studies not counted.
        least: that give each of these trials its experience, from an empty store.
    """

    asked: int
    computed: int
    least: int


def pretraining_epochs(trials: Iterable[TrialRecord], epochs: Iterable[EpochRecord]) -> PretrainingEpochs:
    """Count what the trials asked for, what was computed for it, and what had to be."""
    asked, alike = 0, dict[str, ResolvedTrial]()
    for row in trials:
        if row.experience_seconds is None:
            continue
        settings = json.loads(row.config)
        pretraining = settings["pretraining"]
        asked += pretraining["epochs"] + pretraining["cooldown_epochs"]
        del settings["regulation"]  # of thousands of trials few differ in anything else
        key = json.dumps(settings, sort_keys=True)
        if key not in alike:
            alike[key] = ResolvedTrial(config=from_json(TrialConfig, json.loads(row.config)), identity=row.identity)
    computed = {(row.identity, row.epoch) for row in epochs if row.stage == "pretraining"}
    return PretrainingEpochs(asked=asked, computed=len(computed), least=least_epochs(alike.values()))


def device_hours(config: StudyConfig, runs: Iterable[RunRecord]) -> float:
    """Hours of devices that runs took: in which slots ran trials, or were held for those that waited for pre-training.

    A slot takes as much as the trial that asks for most: its share of a GPU, or 1 where the study names none.
    """
    share = max(float(config.trial_resources(backbone).gpus or 1.0) for backbone in config.backbones())
    return share * math.fsum(run.slot_seconds for run in runs) / 3600


def waiting_share(runs: Iterable[RunRecord]) -> float:
    """Share of the slots' time that went into waiting for an experience which another trial was training, in [0, 1]."""
    rows = [*runs]
    total = math.fsum(row.slot_seconds for row in rows)
    return math.fsum(row.waiting_slot_seconds for row in rows) / total if total else 0.0
