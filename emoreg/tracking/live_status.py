"""What runs in a driver now, left beside the records for `emoreg status`, which may ask on another machine."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from emoreg.config import ResolvedTrial, to_json
from emoreg.results.records import EpochRecord, Role, TrialRecord, utc_now
from emoreg.results.status import STALE_SECONDS, Live, RunningTrial, age, live_name, parse_live
from emoreg.storage.files import replacing, storage_full_error
from emoreg.storage.sealed import seal
from emoreg.tracking.observer import RunStatus, StudyObserver

log = logging.getLogger(__name__)

_WRITE_SECONDS = 5.0


class LiveStatus(StudyObserver):
    """Writes the trials that run into ``records/live.RUN.json`` every few seconds: the file is a sign of life too."""

    def __init__(self, folder: Path, *, is_alone: bool = False) -> None:
        """Begin for the study in ``folder``; ``is_alone`` where no other driver of it can be living."""
        self._folder = folder
        self._is_alone = is_alone
        self._running: dict[str, RunningTrial] = {}
        self._next_write = 0.0

    def on_run_start(self, status: RunStatus) -> None:
        """Remove what killed drivers left, and write a sign of life at once."""
        for path in self._folder.glob(live_name("*")):  # living drivers write theirs again
            live = parse_live(path.read_bytes())
            if self._is_alone or live is None or age(live.time) > STALE_SECONDS:
                path.unlink(missing_ok=True)
        self._write(status)
        self._next_write = 0.0  # and what runs at the first tick

    def on_start(self, trial: ResolvedTrial, role: Role) -> None:
        """A trial has a worker."""
        self._running[trial.identity] = RunningTrial.of(trial, role)

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """A running trial ended an epoch."""
        if trial.identity in self._running:
            self._running[trial.identity] = RunningTrial.of(trial, self._running[trial.identity].role, row)

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """A trial runs no more."""
        self._running.pop(trial.identity, None)

    def on_retry(self, trial: ResolvedTrial, reason: str) -> None:
        """A trial runs no more until it is begun again."""
        self._running.pop(trial.identity, None)

    def on_saved(self, trial: ResolvedTrial) -> None:
        """A trial runs no more until the study is run again."""
        self._running.pop(trial.identity, None)

    def on_tick(self, status: RunStatus) -> None:
        """Write the file if it is time, changed or not."""
        if time.monotonic() >= self._next_write:
            self._write(status)

    def on_run_end(self, status: RunStatus) -> None:
        """Remove the file: nothing runs."""
        (self._folder / live_name(status.run.run)).unlink(missing_ok=True)

    def _write(self, status: RunStatus) -> None:
        live = Live(time=utc_now(), slots=status.run.slots, waiting=status.num_waiting, running=tuple(self._running.values()))
        try:
            with replacing(self._folder / live_name(status.run.run)) as stream:
                stream.write(seal(to_json(live)))
        except OSError as error:
            if storage_full_error(error.errno, error) is not None:
                raise
            log.warning("what runs now could not be written down: %s", error)  # no reason to end a study
        self._next_write = time.monotonic() + _WRITE_SECONDS
