"""What happens in a study's driver: trials' results become records, events and progress, and the study stops where it must."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from ray import tune
from ray.tune.experiment import Trial

from emoreg.config import ResourcesConfig, StudyConfig, TrialConfig
from emoreg.errors import StorageError
from emoreg.results.analysis import experience_ledger
from emoreg.results.records import (
    EpochRecord,
    Provenance,
    Records,
    Role,
    Status,
    TrialRecord,
    TrialResult,
    trial_record,
    utc_now,
)
from emoreg.results.status import Now
from emoreg.storage.files import storage_full_error, sweep, without_credentials
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking import tensorboard
from emoreg.tracking.study_board import RUN, StudyBoard
from emoreg.training.experience import ExperienceStore
from emoreg.tuning.coordination import Machines, StopSignal
from emoreg.tuning.messages import EXPERIENCED, FAULT, STATUS
from emoreg.tuning.searcher import OptunaSearcher
from emoreg.tuning.worker import log_tail

_PRUNE_SECONDS = 60.0
_PUSH_SECONDS = 5.0
_PUSH_BOARD_SECONDS = 60.0
_GIB = 2**30
_EPOCH_FIELDS = [item.name for item in dataclasses.fields(EpochRecord)]

StudyEnd = Literal["whole", "interrupted", "broken"]
"""``whole``: every trial ended. ``interrupted``: told to stop. ``broken``: ``resources.max_failures`` faults in code."""


class Progress(Protocol):
    """Who is told how the study goes on, in the driver."""

    def started(self, identity: str, config: TrialConfig, role: Role) -> None:
        """A trial began, or began again."""

    def epoch(self, row: EpochRecord) -> None:
        """A running trial ended an epoch."""

    def ended(self, record: TrialRecord) -> None:
        """A trial ended."""

    def retried(self, identity: str, reason: str) -> None:
        """The machine broke a trial, which will go on from its checkpoint."""

    def stopping(self) -> None:
        """The study was told to stop: running trials save."""

    def saved(self, identity: str) -> None:
        """A trial has saved, because the study is to stop."""

    def say(self, sentence: str) -> None:
        """Something that a user should know."""

    def tick(self, num_waiting: int) -> None:
        """Time passed; so many trials wait for an experience that another is training."""


class Stop:
    """Whether the study is to stop, and by when. Asked by signal handlers, which may do no more than note it."""

    def __init__(self, resources: ResourcesConfig) -> None:
        self._grace_seconds = resources.grace_seconds
        self._deadline = math.inf
        self._is_signalled = False
        self.is_asked = False

    def ask(self, signal_number: int | None = None) -> None:
        """Stop; after SIGTERM within the grace period.

        Raises:
            KeyboardInterrupt: where a signal has asked before.
        """
        if self._is_signalled and signal_number is not None:
            raise KeyboardInterrupt
        self._is_signalled |= signal_number is not None
        self.is_asked = True
        if signal_number == signal.SIGTERM:
            self._deadline = time.monotonic() + self._grace_seconds

    @property
    def is_overdue(self) -> bool:
        """Whether the grace period is over."""
        return time.monotonic() > self._deadline


def push(copy: WorkingCopy, *names: str) -> None:
    """Take to the storage what the driver has written.

    Raises:
        StorageError: where an object store has not answered for minutes.
    """
    try:
        copy.push(*names)
    except OSError as error:
        raise StorageError(
            "run the same command again when the storage answers, and the study goes on from what it holds: "
            f"{copy.files.uri!r} does not answer ({without_credentials(str(error))})"
        ) from error


class Driver(tune.Callback):
    """Turns what trials report into records, events and progress, and stops the study where it must.

    A trial's record is written at its last result, before the searcher tells Optuna: a kill between the two leaves a record
    from which the next run tells Optuna. A trial that the machine broke is told first; the next run then finds that it failed.
    """

    heartbeat: Callable[[], None]
    slots: Callable[[], int]
    """How many trials run at once, of those that ask the least: it follows the cluster."""

    def __init__(
        self,
        config: StudyConfig,
        copy: WorkingCopy,
        records: Records,
        progress: Progress,
        searcher: OptunaSearcher,
        store: ExperienceStore,
        stop: Stop,
        provenance: Provenance,
    ) -> None:
        self._config = config
        self._copy = copy
        self._records = records
        self._progress = progress
        self._searcher = searcher
        self._machines = Machines()
        searcher.is_machine_lost = self._machines.is_lost
        self._store = store
        self._stop = stop
        self._has_told = False
        self._has_said: set[str] = set()
        self.stop_signal = StopSignal()
        self._next_prune = time.monotonic() + _PRUNE_SECONDS
        self._next_push = 0.0
        self._next_push_board = 0.0
        self._started: dict[str, str] = {}
        self._ended: set[str] = set()
        self._experiences: dict[str, dict[str, Any]] = {}
        self._faults: dict[str, tuple[str, int | None]] = {}
        self._run = records.begin_run(provenance)
        self._now = Now(copy.folder, self._run.run)
        self._board = StudyBoard(copy.folder, config, records, self._run.run)
        self._last_step = time.monotonic()
        self.num_broken = 0
        self.storage_error: StorageError | None = None
        """Why no more can be stored, where a trial has found so on every attempt."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into the experiment's folder, to restore from: emoreg never does.
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look after what no trial reports: the end of a grace period, trials that Tune dropped, time."""
        self.heartbeat()
        if self._stop.is_asked and not self._has_told:
            self._has_told = True
            self.stop_signal.set()
            self._progress.stopping()
        if self._stop.is_overdue:
            raise KeyboardInterrupt
        for trial in trials:
            if trial.status == Trial.ERROR and self._searcher.is_running(trial.trial_id):
                # Tune tells nobody of a trial whose worker was not ready for it.
                self._searcher.on_trial_complete(trial.trial_id, error=True)
                self.on_trial_error(iteration, trials, trial)
        self._count_slots()
        self._now.write(slots=self._run.slots, num_waiting=self._searcher.num_waiting)
        self._board.tick()
        if time.monotonic() > self._next_push:
            push(self._copy, "records", "optuna.journal")
            self._next_push = time.monotonic() + _PUSH_SECONDS
        if time.monotonic() > self._next_push_board:  # one file, which grows: more seldom
            push(self._copy, f"events/{RUN}")
            self._next_push_board = time.monotonic() + _PUSH_BOARD_SECONDS
        self._progress.tick(self._searcher.num_waiting)

    def _count_slots(self) -> None:
        """Add the time since the last step to the slots that ran trials, and to those that stood empty while trials waited.

        A trial counts as one slot, also where it takes the place of several that ask for less.
        """
        now = time.monotonic()
        slots = self._searcher.lookahead = self.slots()
        running = min(slots, self._searcher.num_running)  # others may be on their way to a slot
        waiting = min(slots - running, self._searcher.num_waiting)
        seconds, self._last_step = now - self._last_step, now
        self._run = dataclasses.replace(
            self._run,
            slots=slots,
            slot_seconds=self._run.slot_seconds + seconds * (running + waiting),
            waiting_slot_seconds=self._run.waiting_slot_seconds + seconds * waiting,
        )

    def end_run(self, ending: StudyEnd) -> StudyEnd:
        """Record that, and how, the run ended."""
        self._run = dataclasses.replace(self._run, ended=utc_now(), ending=ending)
        self._records.add_run(self._run)
        self._now.end()
        self._copy.remove(self._now.name)
        self._board.end(draw=ending != "interrupted")
        return ending

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has a worker."""
        config: TrialConfig = trial.config["trial"]
        self._searcher.on_trial_start(trial.trial_id)
        self._machines.began(trial)
        self._started[trial.trial_id] = utc_now()
        self._now.started(config, trial.config["role"])
        self._progress.started(config.identity, config, trial.config["role"])

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """A trial ended an epoch, got its experience, or ended."""
        if "stage" in result:
            row = EpochRecord(**{name: result[name] for name in _EPOCH_FIELDS})
            self._records.add_epoch(row)
            self._now.epoch(row)
            self._progress.epoch(row)
        match result.get(STATUS):
            case "finished":
                self._end(trial, "finished", result=TrialResult(**result["result"]), device=result["device"])
            case "diverged":
                self._end(trial, "pruned", reason=result["reason"], device=result["device"])
            case "broken":
                self._end(trial, "failed", reason=result[FAULT], log=result["traceback"], device=result["device"])
                self.num_broken += 1
                if self.num_broken >= self._config.resources.max_failures:
                    self._stop.ask()
            case "interrupted":
                self._now.stopped(trial.config["trial"].identity)
                self._progress.saved(trial.config["trial"].identity)
            case _ if EXPERIENCED in result:
                self._experiences[trial.trial_id] = result[EXPERIENCED]
            case _ if FAULT in result:
                self._faults[trial.trial_id] = result[FAULT], result["errno"]
            case _ if result.get("done"):
                self._end(trial, "pruned", reason="stopped by the scheduler", device=result["device"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The machine broke a trial."""
        if trial.trial_id in self._ended:  # its worker died after it had ended by itself
            return
        reason, number = self._faults.get(trial.trial_id, ("its worker died", None))
        identity = trial.config["trial"].identity
        if self._searcher.is_retried(trial.trial_id):
            self._now.stopped(identity)
            self._progress.retried(identity, reason)
        elif (
            full := storage_full_error(number, reason)
        ) is not None:  # no fault of the trial: the study stops, and it goes on when that is mended
            self._now.stopped(identity)
            self.storage_error = full
            self._stop.ask()
        else:
            self._end(trial, "failed", reason=reason, log=log_tail(self._copy.files, identity))

    def tidy(self) -> None:
        """Remove what killed processes left unfinished, and what the experience store keeps beyond its budget."""
        sweep(self._copy.folder)
        try:
            self._store.sweep()
        except OSError as error:  # a store far away may not answer: the next time it will
            self._progress.say(f"the experience store could not be swept now ({error})")
        self._prune()

    def _prune(self) -> None:
        self._next_prune = time.monotonic() + _PRUNE_SECONDS
        budget = self._config.experience.budget_gib
        try:
            said = [] if budget is None else self._store.prune(round(budget * _GIB)).said
        except OSError as error:
            said = [f"the experience store could not be pruned now ({error})"]
        for sentence in said:
            if sentence not in self._has_said:
                self._has_said.add(sentence)
                self._progress.say(sentence)

    def _end(
        self,
        trial: Trial,
        status: Status,
        *,
        reason: str | None = None,
        log: str | None = None,
        result: TrialResult | None = None,
        device: str = "unknown",
    ) -> None:
        self._ended.add(trial.trial_id)
        assigned = trial.config
        config: TrialConfig = assigned["trial"]
        experience = self._experiences.get(trial.trial_id)
        record = trial_record(
            config,
            role=assigned["role"],
            number=assigned["number"],
            params=assigned["params"],
            status=status,
            reason=reason,
            result=result,
            epochs=self._records.epochs_of(config.identity),
            device=device,
            started=self._started.get(trial.trial_id, utc_now()),  # an actor that never came up never started
            experience_seconds=None if experience is None else experience["cost_seconds"],
            waiting_seconds=0.0 if experience is None else experience["waiting_seconds"],
            attempts=assigned["attempt"],
            log_tail=log,
        )
        self._records.add_trial(record)
        ledger = experience_ledger([record])
        self._run = dataclasses.replace(
            self._run,
            num_trials=self._run.num_trials + 1,
            waiting_slot_seconds=self._run.waiting_slot_seconds + record.waiting_seconds,
            paid_seconds=self._run.paid_seconds + ledger.paid,
            reused_seconds=self._run.reused_seconds + ledger.reused,
        )
        self._records.add_run(self._run)
        tensorboard.finish(self._copy.folder, record)
        running = self._now.num_running  # this one too: its place is not empty yet
        self._board.ended(record, running=running, slots=self._run.slots, gpu_utilisation=self._now.gpu_utilisation)
        self._now.stopped(config.identity)
        push(self._copy, "records", f"events/{config.identity}")  # before Optuna is told: the records decide
        self._progress.ended(record)
        if time.monotonic() > self._next_prune:
            self._prune()
