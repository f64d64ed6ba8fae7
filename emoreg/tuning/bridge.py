"""Ray Tune's callbacks, translated: what trials report goes to the recorder, the observers and the dispatcher, in this order.

A trial's record is on disk before Optuna is told how it ended: a kill between the two leaves a record from which the next run
tells Optuna.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from emoreg.config import StudyConfig
from emoreg.errors import StorageError
from emoreg.results.analysis import num_planned
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage.files import storage_full_error
from emoreg.tracking.observer import RunStatus, StudyObserver
from emoreg.training.events import Confusion, Experienced
from emoreg.tuning.dispatcher import Dispatcher
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.recorder import Recorder
from emoreg.tuning.signals import Stop
from emoreg.tuning.tune_results import EVENT, TrialBroken, TrialEnded, TrialPlaced, TrialSaved

_MEMORY_FULL = "running low on memory"  # in the words of Ray's memory monitor


class TuneBridge(tune.Callback):
    """Follows the trials of one run of a study, and stops it where it must.

    Attributes:
        num_aborted: trials that a fault in code broke.
        storage_error: why no more can be stored, if a trial has found so.
    """

    def __init__(
        self,
        config: StudyConfig,
        recorder: Recorder,
        dispatcher: Dispatcher,
        observers: StudyObserver,
        stop: Stop,
        *,
        slots: Callable[[], int],
        log_tail: Callable[[str], str | None],
    ) -> None:
        """Begin.

        Args:
            dispatcher: told how trials end.
            observers: told everything.
            stop: whether the study is to stop.
            slots: trials that fit at once, as the cluster is now.
            log_tail: the last lines of a trial's log, by identity.
        """
        self._max_failures = config.resources.max_failures
        self._scheduler = config.scheduler.name
        self._recorder = recorder
        self._dispatcher = dispatcher
        self._observers = observers
        self._stop = stop
        self._num_planned = num_planned(config)
        self._slots = slots
        self._log_tail = log_tail
        self._has_told_stop = False
        self._faults: dict[str, TrialBroken] = {}
        self.num_aborted = 0
        self.storage_error: StorageError | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into the experiment's folder, to restore from: emoreg never does.
        return {}

    @property
    def status(self) -> RunStatus:
        """Where the run stands."""
        return RunStatus(
            run=self._recorder.run,
            num_running=self._dispatcher.num_running,
            num_waiting=self._dispatcher.num_waiting,
            trials=self._recorder.records.trials,
            num_planned=self._num_planned,
        )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look after what no trial reports: a stop, the end of a grace period, trials that Tune dropped, time."""
        if self._stop.is_asked and not self._has_told_stop:
            self._has_told_stop = True
            self._observers.on_stopping()
        if self._stop.is_overdue:
            raise KeyboardInterrupt
        for trial in trials:
            if trial.status == Trial.ERROR:  # Tune tells nobody of a trial whose worker was not ready for it
                self._broke(trial)
        slots = self._slots()
        self._recorder.count_slots(slots, num_running=self._dispatcher.num_running, num_waiting=self._dispatcher.num_waiting)
        self._observers.on_tick(self.status)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has a worker."""
        job = _job(trial)
        self._recorder.start(trial.trial_id)
        self._observers.on_start(job.trial, job.role)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """A trial tells something."""
        trial_id = trial.trial_id
        if not self._dispatcher.is_running(trial_id):  # it has ended
            return
        match result.get(EVENT):
            case TrialPlaced() as placed:
                self._recorder.placed(trial_id, placed.device)
                self._dispatcher.placed(trial_id, placed.node_id)
            case EpochRecord() as row:
                self._recorder.epoch(row)
                self._observers.on_epoch(_job(trial).trial, row)
                self._dispatcher.epoch(trial_id, row)
            case Experienced() as event:
                self._recorder.experience_ready(trial_id, event.cost)
                self._dispatcher.experience_ready(trial_id)
            case ProbeRecord() as row:
                self._recorder.records.add_probe(row)
            case Confusion() as confusion:
                for evaluation in confusion.rows(_job(trial).trial.identity):
                    self._recorder.records.add_evaluation(evaluation)
            case TrialEnded() as end:
                self._end(trial, end.outcome, end.log_tail)
            case TrialSaved():
                self._saved(trial)
            case TrialBroken() as fault:
                self._faults[trial_id] = fault
        if result.get("done") and self._dispatcher.is_running(trial_id):
            self._stopped(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune ended a trial: by its scheduler, if the trial itself has not told an end."""
        if self._dispatcher.is_running(trial.trial_id):
            self._stopped(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The machine broke a trial."""
        self._broke(trial)

    def _stopped(self, trial: Trial) -> None:
        self._cut_short(trial, EndReason.STOPPED_BY_SCHEDULER, f"stopped by the scheduler {self._scheduler}")

    def _cut_short(self, trial: Trial, end: EndReason, message: str) -> None:
        self._end(trial, self._recorder.unfinished(trial.trial_id, _job(trial), end, message), None)

    def _saved(self, trial: Trial) -> None:
        if _job(trial).trial.identity in self._stop.trials:
            self._cut_short(trial, EndReason.STOPPED_BY_HAND, "stopped by hand")
            return
        if not self._stop.is_asked:  # nobody has asked it to
            self._broke(trial)
            return
        self._observers.on_saved(_job(trial).trial)
        self._dispatcher.saved(trial.trial_id)

    def _broke(self, trial: Trial) -> None:
        trial_id = trial.trial_id
        if not self._dispatcher.is_running(trial_id):  # its worker died after it had ended, or it was told before
            return
        job = _job(trial)
        fault = self._faults.get(trial_id) or TrialBroken(death_of(trial.error_file), None)
        full = storage_full_error(fault.errno, fault.message)
        if self._dispatcher.broke(trial_id, fault.errno):
            self._observers.on_retry(job.trial, fault.message)
        elif full is not None:  # no fault of the trial: the study stops, and goes on when that is mended
            self.storage_error = full
            self._stop.ask()
            self._observers.on_saved(job.trial)
            self._dispatcher.saved(trial_id)
        else:
            outcome = self._recorder.unfinished(trial_id, job, EndReason.INFRASTRUCTURE, fault.message)
            self._end(trial, outcome, self._log_tail(job.trial.identity))

    def _end(self, trial: Trial, outcome: Outcome, log_tail: str | None) -> None:
        job = _job(trial)
        record = self._recorder.end(trial.trial_id, job, outcome, log_tail=log_tail)
        self._observers.on_end(job.trial, record)
        self._dispatcher.end(trial.trial_id, outcome)
        if outcome.end is EndReason.CODE_ERROR:
            self.num_aborted += 1
            if self.num_aborted >= self._max_failures:
                self._stop.ask()


def death_of(error_file: str | None) -> str:
    """Why a worker died, as far as Tune's file of a trial's error tells: Ray's memory monitor has no other place to say it."""
    text = ""
    if error_file is not None:
        with suppress(OSError):  # Tune has not come to write it
            text = Path(error_file).read_text()
    if _MEMORY_FULL not in text:
        return "its worker died"
    used = re.search(r"[\d.]+GB used / [\d.]+GB", text)
    return (
        f"the memory of its node was full{f' ({used[0]})' if used else ''}, so Ray ended its worker: run fewer trials at once "
        "(--resources.max-concurrent), take a smaller batch, or set RAY_memory_usage_threshold where Ray is started"
    )


def _job(trial: Trial) -> Job:
    job: Job = trial.config[JOB]
    return job
