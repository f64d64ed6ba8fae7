"""How a trial tells the outside world what it does. The trainer knows this protocol and nothing behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from emoreg.results.records import EpochRecord, Stage


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
    """The balance of each validation image after an epoch, where it depends on the image (kind=dynamic)."""

    epoch: int
    balance: Float[Tensor, " N"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Counts of validation (or test) images by true class (rows) and predicted class (columns), at the end."""

    split: str
    counts: Int[Tensor, "C C"]
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experienced:
    """The emotional encoder has its experience, and the store holds it: trials that wait for it can go on.

    Attributes:
        epochs: its length.
        paid_seconds: that this trial paid for, over all its attempts.
        cost_seconds: that the whole experience cost, whoever paid.
        waiting_seconds: that this attempt waited for another trial to train it.
    """

    epochs: int
    paid_seconds: float
    cost_seconds: float
    waiting_seconds: float


Event = EpochRecord | Experienced | ImagesSample | BalanceSample | Confusion


class Reporter(Protocol):
    """Receives what happens in a trial, in order."""

    def report(self, event: Event) -> None:
        """Take one event. May raise to end the trial (Tune does)."""


class Reporters:
    """Hands each event to several reporters in turn."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def report(self, event: Event) -> None:
        """Pass the event on, in the order in which the reporters were given."""
        for reporter in self._reporters:
            reporter.report(event)
