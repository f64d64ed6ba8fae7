"""What a trial tells the outside world, and to whom. The trainer knows this protocol and nothing behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from emoreg.results.outcome import PretrainingCost
from emoreg.results.records import EpochRecord, EvaluationRecord, ProbeRecord, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesSample:
    """A few training images as the network sees them, once a stage.

    N images, H x W pixels.
    """

    stage: Stage
    images: UInt8[Tensor, "N 3 H W"]
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceSample:
    """The balance of each validation image after an epoch, if it depends on the image (kind=dynamic)."""

    epoch: int
    balance: Float[Tensor, " N"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Counts of validation (or test) images by true class (rows) and predicted class (columns), at the end."""

    split: str
    counts: Int[Tensor, "C C"]
    class_names: tuple[str, ...]

    def rows(self, identity: str) -> list[EvaluationRecord]:
        """The records of a trial's evaluation: a row a class."""
        columns = (self.counts.sum(dim=1), self.counts.sum(dim=0), self.counts.diagonal())
        return [
            EvaluationRecord(
                identity=identity,
                split=self.split,
                class_name=name,
                num_images=num_images,
                num_predicted=num_predicted,
                num_correct=num_correct,
            )
            for name, num_images, num_predicted, num_correct in zip(
                self.class_names, *(column.tolist() for column in columns), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experienced:
    """The emotional encoder has its experience, and the store holds it: trials that wait for it can go on.

    Attributes:
        epochs: its length.
        cost: what it took so far.
    """

    epochs: int
    cost: PretrainingCost


Event = EpochRecord | ProbeRecord | Experienced | ImagesSample | BalanceSample | Confusion


class Reporter(Protocol):
    """Receives what happens in a trial, in order."""

    def report(self, event: Event) -> None:
        """Take one event. May raise to end the trial (Tune does)."""
