"""How a trial ended and what it measured: the one shape from the trainer to Optuna, Parquet and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from emoreg.config.trial import Precision

Status = Literal["finished", "pruned", "failed"]


class EndReason(StrEnum):
    """Why a trial ended."""

    COMPLETED = "completed"
    """It did all its epochs."""
    STOPPED_BY_SCHEDULER = "stopped_by_scheduler"
    """Other trials were better at a rung."""
    STOPPED_BY_HAND = "stopped_by_hand"
    """Somebody had it stopped."""
    DIVERGED = "diverged"
    """A loss left the finite numbers."""
    INFRASTRUCTURE = "infrastructure"
    """The machine broke it on every attempt: memory, GPU, storage, a lost node."""
    CODE_ERROR = "code_error"
    """A fault in code broke it, which no retry mends."""

    @property
    def status(self) -> Status:
        """What the records call a trial that ended so."""
        match self:
            case EndReason.COMPLETED:
                return "finished"
            case EndReason.STOPPED_BY_SCHEDULER | EndReason.STOPPED_BY_HAND | EndReason.DIVERGED:
                return "pruned"
            case EndReason.INFRASTRUCTURE | EndReason.CODE_ERROR:
                return "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingCost:
    """What the experience of a trial took, in seconds.

    Attributes:
        paid_seconds: of pre-training by this trial, over all its attempts; 0 where others had paid.
        experience_seconds: of the whole experience, whoever paid; None where the trial did not come so far.
        waiting_seconds: that its last attempt waited for another trial to train it.
    """

    paid_seconds: float = 0.0
    experience_seconds: float | None = None
    waiting_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OomState:
    """What was done because memory was too small.

    Attributes:
        micro_batch_size: images in a forward pass; None where whole batches fit.
        recomputed: activations are computed again in the backward pass instead of kept.
    """

    micro_batch_size: int | None = None
    recomputed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ended and what it measured.

    Attributes:
        end: why it ended; its ``status`` is ``end.status``.
        message: the error, or where it diverged or was stopped, in words; None where it completed.
        val_accuracy: on the validation split after the last regulation epoch run, in [0, 1].
        val_loss: there, unsmoothed cross-entropy.
        measured_balance: mean balance b there; where nothing is held out, on the test split.
        test_accuracy: in [0, 1]; None unless the test split was opened.
        metrics: user-registered metrics by column name (``val_NAME``, ``test_NAME``).
        regulation_epochs: that were run.
        regulation_seconds: over all attempts.
        num_parameters: of the regulated network; None where it was not built.
        precision: in which it was computed, "float32" or "bf16"; None where no epoch was.
        compiled: whether its training steps were compiled; None where no epoch was computed.
        pretraining: what the experience took.
        oom: what it took to fit in memory.
        diverged_step: of ``diverged_stage``, the optimizer update whose loss was the first not finite.
    """

    end: EndReason
    message: str | None = None
    val_accuracy: float | None = None
    val_loss: float | None = None
    measured_balance: float | None = None
    test_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    regulation_epochs: int = 0
    regulation_seconds: float = 0.0
    num_parameters: int | None = None
    precision: Precision | None = None
    compiled: bool | None = None
    pretraining: PretrainingCost = PretrainingCost()
    oom: OomState = OomState()
    diverged_stage: str | None = None
    diverged_step: int | None = None

    @property
    def status(self) -> Status:
        """What the records call a trial that ended so."""
        return self.end.status

    def value(self, metric: str) -> float | None:
        """What an objective reads: val_accuracy, val_loss, device_seconds, or a registered metric by its column's name."""
        known = {"val_accuracy": self.val_accuracy, "val_loss": self.val_loss, "device_seconds": self.device_seconds}
        return known[metric] if metric in known else self.metrics.get(metric)

    @property
    def device_seconds(self) -> float:
        """What the trial costs alone: its whole experience, whoever paid, or else what it paid, and regulation."""
        experience = self.pretraining.experience_seconds
        return (self.pretraining.paid_seconds if experience is None else experience) + self.regulation_seconds
