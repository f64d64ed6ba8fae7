"""What a trial tells Tune: the object that it tells, and beside it the keys that Tune's schedulers compare."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.records import EpochRecord, ProbeRecord, Role
from emoreg.training.events import Confusion, Experienced

EVENT = "event"
"""Key of what a result tells: one of ``TuneEvent``."""
REGULATION_EPOCH = "regulation_epoch"
"""Key that schedulers compare by (their ``time_attr``)."""


@dataclass(frozen=True, slots=True)
class TrialPlaced:
    """A trial has begun on a node, in its first attempt or a later one.

    Attributes:
        node_id: Ray's name of the node.
        device: name of the device.
    """

    node_id: str
    device: str


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial ended by itself: it completed, diverged, or a fault in code broke it.

    Attributes:
        log_tail: last lines of its log, or the traceback, if it is broken.
    """

    outcome: Outcome
    log_tail: str | None = None


@dataclass(frozen=True, slots=True)
class TrialSaved:
    """A trial saved its state because it was asked to stop."""


@dataclass(frozen=True, slots=True)
class TrialBroken:
    """The machine broke an attempt of a trial. Tune's own error follows, which does not say of what.

    Attributes:
        errno: of an operating system's error.
    """

    message: str
    errno: int | None


TuneEvent = TrialPlaced | EpochRecord | ProbeRecord | Experienced | Confusion | TrialEnded | TrialSaved | TrialBroken


def metric_key(metric: str) -> str:
    """The key of a metric in Tune's results: ``"metric/val_accuracy"``."""
    return f"metric/{metric}"


def epoch_result(row: EpochRecord, *, role: Role, num_epochs: int) -> dict[str, Any]:
    """What a trial reports to Tune after an epoch.

    The metrics are there after epochs of regulation only, so that pre-training is never compared. Schedulers see
    ``REGULATION_EPOCH`` in searched trials only (controls run to their end), and not in the last of ``num_epochs``: stopping
    there would save nothing and make a trial that is complete look pruned. Its last result stands for that epoch.
    """
    result: dict[str, Any] = {EVENT: row}
    if row.stage == "regulation":
        result |= {metric_key(name): value for name, value in epoch_metrics(row).items()}
        if role == "search" and row.epoch < num_epochs:
            result[REGULATION_EPOCH] = row.epoch
    return result


def epoch_metrics(row: EpochRecord) -> dict[str, float]:
    """The metrics of an epoch that objectives may name."""
    measured = {"val_accuracy": row.val_accuracy, "val_loss": row.val_loss, **json.loads(row.metrics)}
    return {name: value for name, value in measured.items() if value is not None}


def last_result(event: TrialEnded | TrialSaved, *, role: Role, metrics: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a trial reports to Tune last.

    Tune's median rule reads ``REGULATION_EPOCH`` and the metrics of every trial's last result. Controls and trials without an
    answer have it at 0, which is below every rung, and metrics that are not a number: nothing is compared with them.

    Args:
        event: the trial's end, or that it saved.
        role: of the trial.
        metrics: registered metrics that objectives may name.
    """
    outcome = event.outcome if isinstance(event, TrialEnded) else None
    completed = outcome if outcome is not None and outcome.end is EndReason.COMPLETED else None
    names = ("val_accuracy", "val_loss", *metrics)
    result: dict[str, Any] = {EVENT: event, REGULATION_EPOCH: 0}
    if completed is not None and role == "search":
        result[REGULATION_EPOCH] = completed.regulation_epochs
    for name in names:
        value = None if completed is None else completed.value(name)
        result[metric_key(name)] = math.nan if value is None else value
    result[metric_key("device_seconds")] = math.nan if outcome is None else outcome.device_seconds
    return result
