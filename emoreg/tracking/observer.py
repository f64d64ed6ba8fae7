"""What watches a study from its driver: progress, live status, loggers, pruning and storage synchronisation are observers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emoreg.config.resolved import ResolvedTrial
from emoreg.results.records import EpochRecord, Role, RunRecord, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Where the run of a study stands.

    Attributes:
        run: its row as it is by now, with the slots and their time.
        num_running: trials that were handed out and have not ended.
        num_waiting: trials that wait for a shared pre-training which another trial runs.
        trials: every trial that ended, in this run or an earlier one, by identity.
        num_planned: trials of the whole study: proposals of the sampler, controls, and those of a confirmation.
    """

    run: RunRecord
    num_running: int
    num_waiting: int
    trials: Mapping[str, TrialRecord]
    num_planned: int


class StudyObserver:
    """Base of all observers: each method does nothing, so that an observer overrides only what it looks at.

    The driver calls the observers in order, each in the thread that drives the study. An observer never changes what it is
    given. An error that it raises ends the run: one that wants to go on must handle its own.

    Example:
        >>> import emoreg
        >>> class Bell(emoreg.StudyObserver):
        ...     def on_end(self, trial, record):
        ...         print("\\a", record.identity)
        >>> observers = [Bell()]  # study.run(observers=[Bell()]) rings it
    """

    def on_run_start(self, status: RunStatus) -> None:
        """A run of the study begins."""

    def on_start(self, trial: ResolvedTrial, role: Role) -> None:
        """A trial has a worker, for the first time or again."""

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """A running trial ended an epoch."""

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """A trial ended, and its record is on disk."""

    def on_retry(self, trial: ResolvedTrial, reason: str) -> None:
        """The machine broke a trial, which goes on later from its checkpoint."""

    def on_saved(self, trial: ResolvedTrial) -> None:
        """A trial has saved its state because the study is to stop."""

    def on_stopping(self) -> None:
        """The study was told to stop: running trials save."""

    def on_message(self, message: str) -> None:
        """The driver has a message for the user."""

    def on_tick(self, status: RunStatus) -> None:
        """Time passed: called a few times a second."""

    def on_run_end(self, status: RunStatus) -> None:
        """The run of the study ended, however it did; ``status.run.ending`` tells."""


Call = Callable[[StudyObserver], None]
"""What an observer is told, whichever observer it is."""


class Forwarder(StudyObserver, ABC):
    """Base of observers that pass on whatever they are told."""

    @abstractmethod
    def forward(self, call: Call) -> None:
        """Pass a call on to the observers behind."""

    def on_run_start(self, status: RunStatus) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_run_start(status))

    def on_start(self, trial: ResolvedTrial, role: Role) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_start(trial, role))

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_epoch(trial, row))

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_end(trial, record))

    def on_retry(self, trial: ResolvedTrial, reason: str) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_retry(trial, reason))

    def on_saved(self, trial: ResolvedTrial) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_saved(trial))

    def on_stopping(self) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_stopping())

    def on_message(self, message: str) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_message(message))

    def on_tick(self, status: RunStatus) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_tick(status))

    def on_run_end(self, status: RunStatus) -> None:
        """Pass it on."""
        self.forward(lambda observer: observer.on_run_end(status))


class Observers(Forwarder):
    """Hands everything to several observers, in order."""

    def __init__(self, observers: Sequence[StudyObserver]) -> None:
        self._observers = tuple(observers)

    def forward(self, call: Call) -> None:
        """Make the call of each."""
        for observer in self._observers:
            call(observer)
