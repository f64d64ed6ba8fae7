"""The searches of a study as one source of trials: its own, and those of the controls that are tuned for themselves."""

from __future__ import annotations

from collections.abc import Sequence

from emoreg.results.outcome import Outcome
from emoreg.tuning.queue import Job
from emoreg.tuning.source import TrialSource


class Searches:
    """Several searches as one source of trials, asked in turn so that all come equally far. A ``TrialSource``."""

    def __init__(self, sources: Sequence[TrialSource]) -> None:
        """Begin with the first one."""
        self._sources = [*sources]

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will be proposed."""
        return all(source.is_exhausted for source in self._sources)

    @property
    def is_waiting(self) -> bool:
        """Whether trials are run by other drivers, whose results are awaited."""
        return any(source.is_waiting for source in self._sources)

    def ask(self) -> Job | None:
        """One more proposal as a job; None if it needs no run, or there is no more."""
        for source in tuple(self._sources):
            self._sources.append(self._sources.pop(0))
            if not source.is_exhausted:
                return source.ask()
        return None

    def take_up(self) -> list[Job]:
        """Jobs that a dead driver, or another's claim, had left."""
        return [job for source in self._sources for job in source.take_up()]

    def epoch(self, identity: str, epoch: int, value: float) -> None:
        """A trial has come to a value of the objective after an epoch of regulation."""
        for source in self._sources:
            source.epoch(identity, epoch, value)

    def tell(self, identity: str, outcome: Outcome) -> list[Job]:
        """A trial has ended, and is recorded; what follows from that."""
        return [job for source in self._sources for job in source.tell(identity, outcome)]

    def forget(self, identity: str) -> None:
        """A trial was saved unfinished: the next driver takes it up."""
        for source in self._sources:
            source.forget(identity)
