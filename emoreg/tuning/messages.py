"""What a trial tells Tune: the keys of its results, named here and read by the searcher, the schedulers and the driver."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from emoreg.errors import Diverged
from emoreg.results.records import EpochRecord, Role

Metric = Literal["val_accuracy", "val_loss", "device_seconds"]
Ending = Literal["finished", "diverged", "broken", "interrupted"]
"""How a trial ended by itself. ``broken``: by a fault in code, which no retry mends; the machine's end it by an error."""

STATUS = "status"
"""Key of a trial's last result, an ``Ending``. No other result has it."""
REGULATION_EPOCH = "regulation_epoch"
"""Key that schedulers compare by (their ``time_attr``)."""
EXPERIENCED = "experienced"
"""Key of the result that says that the store holds the trial's experience: the fields of ``reporter.Experienced``."""
FAULT = "fault"
"""Key of the result that tells what broke a trial, before Tune hears that it broke."""


def metric_key(metric: str) -> str:
    """The key of a metric in Tune's results: ``"metric/val_accuracy"``."""
    return f"metric/{metric}"


def epoch_result(row: EpochRecord, *, role: Role, num_epochs: int) -> dict[str, Any]:
    """What a trial reports to Tune after an epoch.

    The metrics are there after epochs of regulation only, so that pre-training is never compared. Schedulers see
    ``REGULATION_EPOCH`` in searched trials only (controls run to their end), and not in the last of ``num_epochs``: stopping
    there would save nothing and make a trial that is complete look pruned. Its last result stands for that epoch.
    """
    result = dataclasses.asdict(row)
    if row.stage == "regulation":
        for key, value in (("val_accuracy", row.val_accuracy), ("val_loss", row.val_loss)):
            if value is not None:
                result[f"metric/{key}"] = value
        if role == "search" and row.epoch < num_epochs:
            result[REGULATION_EPOCH] = row.epoch
    return result


def last_result(
    *,
    role: Role,
    epochs: int,
    accuracy: float | None,
    loss: float | None,
    device_seconds: float,
    diverged: Diverged | None = None,
) -> dict[str, Any]:
    """What a trial reports to Tune when it has ended by itself, after its last epoch's own result.

    Tune's median rule reads ``REGULATION_EPOCH`` and the metrics of every trial's last result. Controls and diverged trials
    have it at 0, which is below every rung: nothing is compared with them.
    """
    result: dict[str, Any] = {
        STATUS: "finished" if diverged is None else "diverged",
        REGULATION_EPOCH: epochs if role == "search" and diverged is None else 0,
        metric_key("val_accuracy"): math.nan if accuracy is None else accuracy,
        metric_key("val_loss"): math.nan if loss is None else loss,
        metric_key("device_seconds"): device_seconds,
    }
    if diverged is not None:
        result |= {"diverged_stage": diverged.stage, "diverged_step": diverged.step}
    return result


def unfinished_result(ending: Literal["broken", "interrupted"]) -> dict[str, Any]:
    """What a trial reports to Tune when it has ended without an answer; schedulers compare nothing with it."""
    nothing = {metric_key(metric): math.nan for metric in get_args(Metric)}
    return {STATUS: ending, REGULATION_EPOCH: 0, **nothing}
