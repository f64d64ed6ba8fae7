"""The records of one run of a study: what trials tell becomes rows."""

from __future__ import annotations

import dataclasses
import time

from emoreg.results.analysis import device_time
from emoreg.results.outcome import EndReason, Outcome, PretrainingCost
from emoreg.results.records import EpochRecord, Provenance, RunRecord, TrialRecord, unfinished_outcome, utc_now
from emoreg.results.tables import Records
from emoreg.tuning.queue import Job

_WRITE_SECONDS = 60.0


class Recorder:
    """Writes the rows of trials, and keeps that of the run.

    Attributes:
        records: of the study.
        run: the run's row, as it is by now.
    """

    def __init__(self, records: Records, provenance: Provenance) -> None:
        """Begin a run."""
        self.records = records
        self.run: RunRecord = records.begin_run(provenance)
        self._started: dict[str, str] = {}
        self._devices: dict[str, str] = {}
        self._costs: dict[str, PretrainingCost] = {}
        self._last_count = time.monotonic()
        self._next_write = self._last_count + _WRITE_SECONDS

    def start(self, trial_id: str) -> None:
        """A trial has a worker."""
        self._started[trial_id] = utc_now()

    def placed(self, trial_id: str, device: str) -> None:
        """A trial computes on a device."""
        self._devices[trial_id] = device

    def epoch(self, row: EpochRecord) -> None:
        """A trial ended an epoch."""
        self.records.add_epoch(row)

    def experience_ready(self, trial_id: str, cost: PretrainingCost) -> None:
        """The pre-training of a trial is done."""
        self._costs[trial_id] = cost

    def unfinished(self, trial_id: str, job: Job, end: EndReason, message: str) -> Outcome:
        """The outcome of a trial that could not tell its own."""
        epochs = self.records.epochs_of(job.trial.identity)
        return unfinished_outcome(epochs, end, message, pretraining=self._costs.get(trial_id))

    def end(self, trial_id: str, job: Job, outcome: Outcome, *, log_tail: str | None) -> TrialRecord:
        """Write the row of a trial that ended, and what it adds to the run's."""
        record = TrialRecord.of(
            job.trial,
            outcome,
            role=job.role,
            number=job.number,
            params=job.params,
            search_of=job.search_of,
            repeats=job.repeats,
            device=self._devices.get(trial_id, "unknown"),
            started=self._started.get(trial_id, utc_now()),  # an actor that never came up never started
            attempts=job.attempts,
            log_tail=log_tail,
        )
        self.records.add_trial(record)
        cost = device_time([record])
        self.run = dataclasses.replace(
            self.run,
            num_trials=self.run.num_trials + 1,
            waiting_slot_seconds=self.run.waiting_slot_seconds + record.waiting_seconds,
            paid_seconds=self.run.paid_seconds + cost.paid,
            reused_seconds=self.run.reused_seconds + cost.reused,
        )
        self.records.add_run(self.run)
        return record

    def count_slots(self, slots: int, *, num_running: int, num_waiting: int) -> None:
        """Add the time since the last call to the slots that ran trials, and to those that stood empty while trials waited.

        A trial counts as one slot, also if it takes the place of several that ask for less.
        """
        now = time.monotonic()
        running = min(slots, num_running)  # others may be on their way to a slot
        waiting = min(slots - running, num_waiting)
        seconds, self._last_count = now - self._last_count, now
        self.run = dataclasses.replace(
            self.run,
            slots=slots,
            slot_seconds=self.run.slot_seconds + seconds * (running + waiting),
            waiting_slot_seconds=self.run.waiting_slot_seconds + seconds * waiting,
        )
        if now >= self._next_write:  # a kill costs the account of devices no more
            self._next_write = now + _WRITE_SECONDS
            self.records.add_run(self.run)

    def end_run(self, ending: str, stop_reason: str | None) -> None:
        """Write that, how and why the run ended."""
        self.run = dataclasses.replace(self.run, ended=utc_now(), ending=ending, stop_reason=stop_reason)
        self.records.add_run(self.run)
