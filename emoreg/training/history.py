"""What was trained so far, and by whom: the epochs of a trial and of the shared run that its experience comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from emoreg.results.outcome import PretrainingCost
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.training.events import Event, Reporter

_Epoch = tuple[str, EpochRecord, tuple[ProbeRecord, ...]]
"""The study whose trial trained an epoch, its record, and what probes measured after it."""


class History:
    """The epochs behind the weights of a trial; those that this very trial trained are told to reporters, in order.

    Attributes:
        waiting_seconds: that the trial waited for another one to pre-train.
    """

    def __init__(self, study: str, identity: str, reporters: Sequence[Reporter]) -> None:
        """Begin with no epoch, for a trial of a study: another study may have a trial of the same identity."""
        self.waiting_seconds = 0.0
        self._study = study
        self._identity = identity
        self._reporters = reporters
        self._epochs: list[_Epoch] = []
        self._num_reported = 0

    def __len__(self) -> int:
        return len(self._epochs)

    def report(self, event: Event) -> None:
        """Tell the reporters."""
        for reporter in self._reporters:
            reporter.report(event)

    def add(self, record: EpochRecord, probes: Iterable[ProbeRecord]) -> None:
        """Add an epoch that this trial trained; ``report_epochs`` tells it."""
        self._epochs.append((self._study, record, tuple(probes)))

    def report_epochs(self, end: int | None = None) -> None:
        """Tell those of this trial's epochs that were not told yet: all, or those among the first ``end`` epochs alone."""
        for epoch in self._epochs[self._num_reported : end]:
            self._num_reported += 1
            if self._is_own(epoch):
                _, record, probes = epoch
                self.report(record)
                for probe in probes:
                    self.report(probe)

    def resume(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over the epochs of a saved state, and tell those that an earlier attempt of this very trial trained."""
        self._epochs = [
            (row["study"], EpochRecord(**row["record"]), tuple(ProbeRecord(**probe) for probe in row["probes"])) for row in rows
        ]
        self._num_reported = 0
        self.report_epochs()

    def to_rows(self) -> list[dict[str, Any]]:
        """What a state saves, for ``resume``."""
        return [
            {"study": study, "record": asdict(record), "probes": [asdict(probe) for probe in probes]}
            for study, record, probes in self._epochs
        ]

    @property
    def own(self) -> list[EpochRecord]:
        """The epochs that this trial trained."""
        return [epoch[1] for epoch in self._epochs if self._is_own(epoch)]

    @property
    def ends_with_own(self) -> bool:
        """Whether this trial trained the last epoch."""
        return bool(self._epochs) and self._is_own(self._epochs[-1])

    @property
    def cost(self) -> PretrainingCost:
        """What the experience took so far, whoever paid."""
        everyone = [record for _, record, _ in self._epochs]
        return PretrainingCost(
            paid_seconds=seconds_of(self.own, "pretraining"),
            experience_seconds=seconds_of(everyone, "pretraining"),
            waiting_seconds=self.waiting_seconds,
        )

    def value_metrics(self, names: Iterable[str]) -> dict[str, float]:
        """Those of the named metrics that the last epoch of pre-training measured, whoever trained it, by column."""
        measured = [json.loads(record.metrics) for _, record, _ in self._epochs if record.stage == "pretraining"]
        last: dict[str, float] = measured[-1] if measured else {}
        return {f"val_{name}": last[f"val_{name}"] for name in names if f"val_{name}" in last}

    def between(self, first: int, last: int) -> History:
        """A history of the epochs after ``first`` up to ``last`` alone, which tells nobody and has waited for nothing."""
        part = History(self._study, self._identity, ())
        part._epochs = [epoch for epoch in self._epochs if first < epoch[1].epoch <= last]
        return part

    def _is_own(self, epoch: _Epoch) -> bool:
        return epoch[0] == self._study and epoch[1].identity == self._identity


def seconds_of(epochs: Iterable[EpochRecord], stage: str) -> float:
    """What the epochs of a stage took."""
    return sum((record.seconds for record in epochs if record.stage == stage), 0.0)
