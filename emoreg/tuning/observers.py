"""Observers that keep a run's house: what killed processes left, the experience store's budget, the copy in the storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from emoreg.config import StudyConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.results.analysis import kept_networks
from emoreg.results.predictions import PREDICTIONS
from emoreg.results.records import TrialRecord
from emoreg.results.requests import asked_to_stop, remove_stop
from emoreg.results.status import live_name
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files, sweep
from emoreg.storage.housekeeping import prune
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.observer import RunStatus, StudyObserver
from emoreg.tracking.tensorboard import finish
from emoreg.tuning.coordination import StopSignal
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.inbox import Clock, Polled
from emoreg.tuning.signals import Stop

_PRUNE_SECONDS = 60.0
_PUSH_SECONDS = 5.0
_GIB = 2**30


class TrialEnds(StudyObserver):
    """Writes how a trial ended into its TensorBoard run."""

    def __init__(self, copy: WorkingCopy) -> None:
        self._folder = copy.folder

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Write the end."""
        finish(self._folder, record)


class StorageSync(StudyObserver):
    """Takes to the storage what the driver writes: every few seconds, at each trial's end, and at the end of the run."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._next = 0.0

    def on_tick(self, status: RunStatus) -> None:
        """Push the records and Optuna's journal, if it is time."""
        if time.monotonic() > self._next:
            self._push("records", "optuna.journal", "events/study")
            self._next = time.monotonic() + _PUSH_SECONDS

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Push the record, before Optuna is told: the records decide."""
        self._push("records", f"events/{trial.identity}")

    def on_run_end(self, status: RunStatus) -> None:
        """Push everything."""
        self._push("records", "optuna.journal", "events")
        self._coordinator.copy.remove(live_name(status.run.run))

    def _push(self, *names: str) -> None:
        self._coordinator.check()
        self._coordinator.copy.push(*names)


class ExperiencePruner(StudyObserver):
    """Removes what killed processes left unfinished, and what the experience store keeps beyond its budget."""

    def __init__(
        self, config: StudyConfig, copy: WorkingCopy, store: ExperienceStore, *, notify: Callable[[str], None]
    ) -> None:
        self._copy = copy
        self._store = store
        self._budget_gib = config.experience.budget_gib
        self._notify = notify
        self._next = 0.0
        self._notified: set[str] = set()

    def on_run_start(self, status: RunStatus) -> None:
        """Sweep and prune."""
        self._sweep()

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Prune, if it is time."""
        if time.monotonic() > self._next:
            self._prune()

    def on_run_end(self, status: RunStatus) -> None:
        """Sweep and prune."""
        self._sweep()

    def _sweep(self) -> None:
        sweep(self._copy.folder)
        try:
            self._store.sweep()
        except OSError as error:  # a store far away may not answer: the next time it will
            self._notify_once(f"the experience store could not be swept now ({error})")
        self._prune()

    def _prune(self) -> None:
        self._next = time.monotonic() + _PRUNE_SECONDS
        if self._budget_gib is None:
            return
        try:
            for message in prune(self._store.files, self._store.locks, round(self._budget_gib * _GIB)).messages:
                self._notify_once(message)
        except OSError as error:
            self._notify_once(f"the experience store could not be pruned now ({error})")

    def _notify_once(self, message: str) -> None:
        if message not in self._notified:
            self._notified.add(message)
            self._notify(message)


class NetworkPruner(StudyObserver):
    """Removes the networks, and the predictions, of ended trials that the study does not keep.

    It comes after ``StorageSync``: what is removed has its record in the storage.
    """

    def __init__(self, config: StudyConfig, copy: WorkingCopy, trials: Mapping[str, TrialRecord]) -> None:
        self._config = config
        self._copy = copy
        self._trials = trials
        self._stored: set[str] = set()
        """Trials that have ended and may have a network in the storage."""

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Remove the trial's network, or that of a former best."""
        self._stored.add(trial.identity)
        self._prune()

    def on_run_end(self, status: RunStatus) -> None:
        """Sweep."""
        self.sweep()

    def sweep(self) -> None:
        """Look at everything stored: earlier drivers were killed, and trials that a scheduler stops may save once more."""
        stored = [found.name.split("/") for found in self._copy.files.find("trials")]
        self._stored = {identity for _, identity, name in stored if name in (CHECKPOINT, PREDICTIONS)} & self._trials.keys()
        self._prune()

    def _prune(self) -> None:
        kept = kept_networks(self._trials.values(), self._config)
        for identity in self._stored - kept:
            self._copy.remove(f"trials/{identity}/{CHECKPOINT}", f"trials/{identity}/{PREDICTIONS}")
        self._stored &= kept


class TrialStopper(StudyObserver):
    """Tells trials, wherever they run, to save and end: those that somebody has asked to stop, and all when the study stops."""

    def __init__(self, files: Files, stop: Stop, signal: StopSignal, *, clock: Clock = time.monotonic) -> None:
        """Look into the study's folder, and tell trials by ``signal``; ``stop`` knows which they are."""
        self._files, self._stop, self._signal = files, stop, signal
        self._polled = Polled[frozenset[str]](asked_to_stop, files, frozenset(), clock)

    def on_run_start(self, status: RunStatus) -> None:
        """Forget what was asked of trials that have ended."""
        for identity in asked_to_stop(self._files) & status.trials.keys():
            remove_stop(self._files, identity)

    def on_tick(self, status: RunStatus) -> None:
        """Tell trials that are to stop."""
        for identity in self._polled() - self._stop.trials:
            self._stop.trials.add(identity)
            self._signal.set(identity)

    def on_stopping(self) -> None:
        """Tell all."""
        self._signal.set()

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Forget what was asked of the trial."""
        if trial.identity in self._stop.trials:
            remove_stop(self._files, trial.identity)


class Heartbeat(StudyObserver):
    """Lets a store know that the study runs, so that nothing that it needs is pruned by others."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat

    def on_tick(self, status: RunStatus) -> None:
        """Beat."""
        self._beat()
