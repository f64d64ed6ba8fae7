"""From records to tables: the best configurations, and regulation beside its controls. Imports neither torch nor ray."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from scipy import stats

from emoreg.config import CONTROLS, Objective
from emoreg.results.records import RunRecord, TrialRecord

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over n seeds, with half the width of its 95 % confidence interval (Student's t); None for a single seed."""

    mean: float
    half_width: float | None
    n: int

    def __str__(self) -> str:
        """In percent: "71.2 ± 1.3", or "71.2" for a single seed."""
        return f"{100 * self.mean:.1f}" + ("" if self.half_width is None else f" ± {100 * self.half_width:.1f}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRow:
    """One control of one backbone, on the study's fixed configuration: nothing here was selected.

    Attributes:
        control: ``regulated`` is regulation itself.
        accuracy: validation accuracy over the seeds that finished.
        gain: regulation minus this control, paired by seed; None for regulation itself, or without a common seed.
    """

    backbone: str
    control: str
    accuracy: Estimate
    gain: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperienceLedger:
    """What pre-training cost the trials of a study, in seconds of the device.

    Attributes:
        paid: spent by the trials themselves.
        reused: of the experience that they took from the store instead, paid for by other trials, of any study.
    """

    paid: float
    reused: float

    @classmethod
    def of(cls, trials: Iterable[tuple[float, float]]) -> ExperienceLedger:
        """Add up what each trial paid, and what its whole experience took, whoever paid."""
        rows = list(trials)
        return cls(
            paid=math.fsum(paid for paid, _ in rows),
            reused=math.fsum(max(0.0, experience - paid) for paid, experience in rows),
        )

    @property
    def saved(self) -> float:
        """Share of all pre-training that was not paid for again, in [0, 1]; 0 where there was none."""
        return self.reused / (self.paid + self.reused) if self.reused else 0.0


def experience_ledger(records: Iterable[TrialRecord]) -> ExperienceLedger:
    """Add up the trials' pre-training."""
    return ExperienceLedger.of((row.pretraining_seconds, row.experience_seconds or 0.0) for row in records)


def waiting_share(runs: Iterable[RunRecord]) -> float:
    """Share of the slots' time that went into waiting for an experience which another trial was training, in [0, 1]."""
    rows = list(runs)
    total = math.fsum(row.slot_seconds for row in rows)
    return math.fsum(row.waiting_slot_seconds for row in rows) / total if total else 0.0


def better(one: TrialRecord, other: TrialRecord, objective: Objective) -> bool:
    """Whether ``one`` is better than ``other`` by the objective; a trial without the metric is never better."""
    mine, its = getattr(one, objective.metric), getattr(other, objective.metric)
    if mine is None or its is None:
        return mine is not None and its is None
    return bool(mine > its) if objective.mode == "max" else bool(mine < its)


def ranked_by_backbone(records: Iterable[TrialRecord], objective: Objective) -> dict[str, list[TrialRecord]]:
    """The finished trials of the search for each backbone, the best first. Selected, so their metric flatters them."""
    ranked: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.number is not None and record.status == "finished":
            ranked.setdefault(record.backbone, []).append(record)

    def compared(one: TrialRecord, other: TrialRecord) -> int:
        return better(other, one, objective) - better(one, other, objective)

    return {backbone: sorted(found, key=cmp_to_key(compared)) for backbone, found in ranked.items()}


def best_by_backbone(records: Iterable[TrialRecord], objective: Objective) -> dict[str, TrialRecord]:
    """The best finished trial of the search for each backbone."""
    return {backbone: found[0] for backbone, found in ranked_by_backbone(records, objective).items()}


def pareto_front(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The finished trials of the search that no other beats in one objective without losing in another."""
    finished = [record for record in records if record.number is not None and record.status == "finished"]

    def dominates(one: TrialRecord, other: TrialRecord) -> bool:
        return any(better(one, other, objective) for objective in objectives) and not any(
            better(other, one, objective) for objective in objectives
        )

    def compared(one: TrialRecord, other: TrialRecord) -> int:
        """By the first objective in which they differ: what dominates comes before what it dominates."""
        sides = (better(other, one, objective) - better(one, other, objective) for objective in objectives)
        return next((side for side in sides if side), 0)

    front: list[TrialRecord] = []
    for record in sorted(finished, key=cmp_to_key(compared)):
        if not any(dominates(other, record) for other in reversed(front)):  # the last one is the likeliest
            front.append(record)
    there = {record.identity for record in front}
    return [record for record in finished if record.identity in there]


def leading(records: Iterable[TrialRecord], objectives: Sequence[Objective], backbones: Sequence[str]) -> list[TrialRecord]:
    """What a search has found: the best trial of each backbone by its objective, or the Pareto front of several objectives."""
    if len(objectives) > 1:
        return pareto_front(records, objectives)
    best = best_by_backbone(records, objectives[0])
    return [best[backbone] for backbone in backbones if backbone in best]


def control_rows(records: Iterable[TrialRecord]) -> list[ControlRow]:
    """Regulation, then each control in the order of ``CONTROLS``, by backbone, with what regulation gains over it."""
    by_group: dict[tuple[str, str], dict[int, float]] = {}
    for record in records:
        if record.role == "control" and record.status == "finished" and record.val_accuracy is not None:
            by_group.setdefault((record.backbone, record.control), {})[record.seed] = record.val_accuracy
    rows = []
    order = ("regulated", *CONTROLS)
    for backbone, control in sorted(by_group, key=lambda group: (group[0], order.index(group[1]))):
        accuracies = by_group[backbone, control]
        regulated = by_group.get((backbone, "regulated"), {})
        gains = [regulated[seed] - accuracy for seed, accuracy in accuracies.items() if seed in regulated]
        rows.append(
            ControlRow(
                backbone=backbone,
                control=control,
                accuracy=estimate(list(accuracies.values())),
                gain=estimate(gains) if gains and control != "regulated" else None,
            )
        )
    return rows


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its 95 % confidence interval by Student's t.

    Raises:
        ValueError: for no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean=mean, half_width=None, n=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = float(stats.t.ppf((1 + _CONFIDENCE) / 2, df=n - 1))
    return Estimate(mean=mean, half_width=quantile * deviation / math.sqrt(n), n=n)
