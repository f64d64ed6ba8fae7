"""A study on Ray Tune: controls and searched trials through one pool of workers. The driver; ``worker`` is the other end.

Every trial is ``run_trial``; Ray and Optuna stand around it. The driver alone writes the records, from what trials report.
Tune's own state is never restored from: Optuna's history and the records are the study's, and running it again resumes it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from emoreg import tensorboard
from emoreg.analysis import experience_ledger
from emoreg.config import ResourcesConfig, StudyConfig, TrialConfig, Value
from emoreg.coordination import ActorLeases, StopSign
from emoreg.errors import ConfigError, StorageError, UserError
from emoreg.experience import ExperienceStore
from emoreg.files import sweep
from emoreg.history import open_study, reconcile, warm_start
from emoreg.messages import EXPERIENCED, FAULT, REGULATION_EPOCH, STATUS, metric_key
from emoreg.preflight import local_storage, named_study, store_uri, study_folder
from emoreg.records import EpochRecord, Records, Role, RunRecord, Status, TrialRecord, TrialResult, trial_record, utc_now
from emoreg.search_space import lengths
from emoreg.searcher import OptunaSearcher
from emoreg.signals import stop_on_signals
from emoreg.worker import Workplace, log_tail, train

# What Tune would do for every trainable of anybody's and emoreg does itself, or not at all.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # pre-training reports progress, never the metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records and events are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials save
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",  # a trial that is stopped ends the write of its checkpoint first
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray 2.60 warns of its coming default without it
}
_ANSWER_SECONDS = 5.0
_PRUNE_SECONDS = 60.0
_GIB = 2**30
_UNWRITABLE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
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


def run_study(config: StudyConfig, records: Records, progress: Progress, *, address: str | None = None) -> StudyEnd:
    """Run what is missing of a study, until all is there, it is told to stop, or faults in code stop it.

    The first SIGINT or SIGTERM lets each trial finish its step and save; a second one, or the end of
    ``resources.grace_seconds`` after SIGTERM, leaves at once. Either way, running the study again goes on.

    Args:
        config: checked by ``preflight``; the caller holds the study's lock.
        records: of the study; written as trials end.
        progress: told what happens.
        address: of a Ray cluster ("auto" for the one on this machine); None starts Ray here for the time of the study.

    Raises:
        ConfigError: for resources that the cluster will never have.
        StorageError: where the storage is full or cannot be written; what was whole stays whole.
    """
    folder = study_folder(config).resolve()
    stop = _Stop(config.resources)
    with stop_on_signals(stop.ask), _own_errors():
        searcher = _take_up(config, folder, records, progress, stop)
        if not searcher.has_work:
            return "whole"
        _start_ray(address)
        try:
            store = ExperienceStore(store_uri(config), leases=None if address is None else ActorLeases(store_uri(config)))
            driver = _Driver(config, folder, records, progress, searcher, store, stop)
            workplace = Workplace(
                storage=local_storage(config.storage).resolve(),
                folder=folder,
                store=store_uri(config),
                study=config.name,
                lengths=lengths(config),
                share=config.experience.share,
                checkpoint_seconds=config.resources.checkpoint_seconds,
                is_cluster=address is not None,
                stop_sign=driver.stop_sign,
            )
            # The signals once more: Ray has put handlers of its own over ours.
            with store.running(config.name) as driver.heartbeat, stop_on_signals(stop.ask):
                driver.tidy()
                try:
                    _fit(config, searcher, driver, workplace)
                    driver.tidy()
                except KeyboardInterrupt:  # told twice, or out of grace
                    return driver.end_run("interrupted")
        finally:
            ray.shutdown()
            records.write()
        if driver.unwritable is not None:
            raise driver.unwritable
        if driver.num_broken >= config.resources.max_failures:
            return driver.end_run("broken")
        return driver.end_run("whole" if searcher.is_done else "interrupted")


class _Stop:
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
        self._is_signalled = signal_number is not None
        self.is_asked = True
        if signal_number == signal.SIGTERM:
            self._deadline = time.monotonic() + self._grace_seconds

    @property
    def is_overdue(self) -> bool:
        """Whether the grace period is over."""
        return time.monotonic() > self._deadline


def _take_up(config: StudyConfig, folder: Path, records: Records, progress: Progress, stop: _Stop) -> OptunaSearcher:
    """Bring Optuna's history, the records and the events into line, and begin from there."""
    study = open_study(config, folder)
    for sentence in warm_start(study, config, partial(named_study, config)):
        progress.say(sentence)
    reconciled = reconcile(study, config, records.trials)
    for sentence in reconciled.said:
        progress.say(sentence)
    for identity, number in reconciled.renumbered.items():
        records.add_trial(dataclasses.replace(records.trials[identity], number=number))
    tensorboard.write_experiment(folder, config)
    for record in records.trials.values():  # an earlier driver may have been killed between a record and its event
        tensorboard.finish(folder, record)
    return OptunaSearcher(
        study,
        config,
        controls=config.control_trials(),
        reruns=reconciled.reruns,
        records=records.trials,
        is_stopping=lambda: stop.is_asked,
        on_repeat=partial(_number, records),
    )


def _fit(config: StudyConfig, searcher: OptunaSearcher, driver: _Driver, workplace: Workplace) -> None:
    resources = _resources(config)
    driver.slots = searcher.lookahead = _slots(config, resources)
    with tempfile.TemporaryDirectory(prefix="emoreg-") as scratch:  # Tune's own state: ours is in storage
        tune.Tuner(
            tune.with_resources(partial(train, workplace=workplace), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(config),
                num_samples=-1,  # until the searcher says that it has finished
                max_concurrent_trials=config.resources.max_concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=config.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher begins broken trials again, after a pause
                callbacks=[driver],
            ),
        ).fit()


def _start_ray(address: str | None) -> None:
    """Start Ray here, or join the cluster at ``address``.

    Raises:
        ConfigError: for a cluster that does not answer, for which Ray would wait minutes.
    """
    os.environ.update(_TUNE_SETTINGS)
    try:
        if address is not None and address != "auto":
            host, _, port = address.rpartition(":")
            if "://" in address:
                raise ValueError("Ray's client cannot carry a study's state: run on a machine of the cluster")
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _TUNE_SETTINGS},
        )
    except (OSError, ValueError) as error:
        if address is None:
            raise
        raise ConfigError(
            f"--address must be HOST:PORT of a running Ray cluster, or 'auto', but {address!r} does not answer ({error}): "
            "start one with `ray start --head`, or leave --address out"
        ) from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a broken trial's traceback is in its record


def _number(records: Records, identity: str, number: int, params: Mapping[str, Value]) -> None:
    """Make a trial that ran as a control a part of the search too, which proposed the same configuration."""
    record = records.trials[identity]
    if record.number is None:
        records.add_trial(dataclasses.replace(record, number=number, params=json.dumps(dict(params))))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let an error of ours through that Tune wraps in its own, and tell of a storage that cannot be written."""
    try:
        yield
    except (TuneError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None:  # Tune raises its own while it handles ours
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
                raise _unwritable(cause.errno, cause) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _unwritable(number: int, error: object) -> StorageError:
    return StorageError(
        f"storage must be writable while a study runs, but {_UNWRITABLE[number]} ({error}): mend that and run the same command "
        "again; what was recorded is whole"
    )


class _Driver(tune.Callback):
    """Turns what trials report into records, events and progress, and stops the study where it must.

    A trial's record is written at its last result, before the searcher tells Optuna: a kill between the two leaves a record
    from which the next run tells Optuna. A trial that the machine broke is told first; the next run then finds that it failed.
    """

    heartbeat: Callable[[], None]
    slots: int

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        records: Records,
        progress: Progress,
        searcher: OptunaSearcher,
        store: ExperienceStore,
        stop: _Stop,
    ) -> None:
        self._config = config
        self._folder = folder
        self._records = records
        self._progress = progress
        self._searcher = searcher
        self._store = store
        self._stop = stop
        self._has_told = False
        self._has_said: set[str] = set()
        self.stop_sign = StopSign()
        self._next_prune = time.monotonic() + _PRUNE_SECONDS
        self._started: dict[str, str] = {}
        self._ended: set[str] = set()
        self._experiences: dict[str, dict[str, Any]] = {}
        self._faults: dict[str, tuple[str, int | None]] = {}
        self._run = RunRecord(
            run=len(records.runs) + 1,
            started=utc_now(),
            ended=None,
            ending=None,
            slots=0,
            num_trials=0,
            slot_seconds=0.0,
            waiting_slot_seconds=0.0,
            paid_seconds=0.0,
            reused_seconds=0.0,
        )
        self._last_step = time.monotonic()
        self.num_broken = 0
        self.unwritable: StorageError | None = None
        """Why no more can be stored, where a trial has found so on every attempt."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into the experiment's folder, to restore from: emoreg never does.
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.heartbeat()
        if self._stop.is_asked and not self._has_told:
            self._has_told = True
            self.stop_sign.put_up()
            self._progress.stopping()
        if self._stop.is_overdue:
            raise KeyboardInterrupt
        for trial in trials:
            if trial.status == Trial.ERROR and self._searcher.is_running(trial.trial_id):
                # Tune tells nobody of a trial whose worker was not ready for it.
                self._searcher.on_trial_complete(trial.trial_id, error=True)
                self.on_trial_error(iteration, trials, trial)
        self._count_slots()
        self._progress.tick(self._searcher.num_waiting)

    def _count_slots(self) -> None:
        """Add the time since the last step to the slots that ran trials, and to those that stood empty while trials waited."""
        now = time.monotonic()
        running = min(self.slots, self._searcher.num_running)  # one more may be on its way to a slot
        waiting = min(self.slots - running, self._searcher.num_waiting)
        seconds, self._last_step = now - self._last_step, now
        self._run = dataclasses.replace(
            self._run,
            slots=self.slots,
            slot_seconds=self._run.slot_seconds + seconds * (running + waiting),
            waiting_slot_seconds=self._run.waiting_slot_seconds + seconds * waiting,
        )

    def end_run(self, ending: StudyEnd) -> StudyEnd:
        """Record that, and how, the run ended."""
        self._run = dataclasses.replace(self._run, ended=utc_now(), ending=ending)
        self._records.add_run(self._run)
        return ending

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        config: TrialConfig = trial.config["trial"]
        self._started[trial.trial_id] = utc_now()
        self._progress.started(config.identity, config, trial.config["role"])

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if "stage" in result:
            row = EpochRecord(**{name: result[name] for name in _EPOCH_FIELDS})
            self._records.add_epoch(row)
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
                self._progress.saved(trial.config["trial"].identity)
            case _ if EXPERIENCED in result:
                self._experiences[trial.trial_id] = result[EXPERIENCED]
            case _ if FAULT in result:
                self._faults[trial.trial_id] = result[FAULT], result["errno"]
            case _ if result.get("done"):
                self._end(trial, "pruned", reason="stopped by the scheduler", device=result["device"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id in self._ended:  # its worker died after it had ended by itself
            return
        reason, number = self._faults.get(trial.trial_id, ("its worker died", None))
        identity = trial.config["trial"].identity
        if self._searcher.is_retried(trial.trial_id):
            self._progress.retried(identity, reason)
        elif number in _UNWRITABLE:  # no fault of the trial: the study stops, and it goes on when that is mended
            self.unwritable = _unwritable(number, reason)
            self._stop.ask()
        else:
            self._end(trial, "failed", reason=reason, log=log_tail(self._folder, identity))

    def tidy(self) -> None:
        """Remove what killed processes left unfinished, and what the experience store keeps beyond its budget."""
        self._next_prune = time.monotonic() + _PRUNE_SECONDS
        budget = self._config.experience.budget_gib
        sweep(self._folder)
        try:
            self._store.sweep()
            said = [] if budget is None else self._store.prune(round(budget * _GIB)).said
        except OSError as error:  # a store far away may not answer: the next time it will
            said = [f"the experience store could not be tidied now ({error})"]
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
            epochs=[row for key, row in self._records.epochs.items() if key[0] == config.identity],
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
        tensorboard.finish(self._folder, record)
        self._progress.ended(record)
        if time.monotonic() > self._next_prune:
            self.tidy()


def _slots(config: StudyConfig, resources: Mapping[str, float]) -> int:
    """How many trials run at once on what the machines of the cluster have now, each for itself."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {name.upper(): amount for name, amount in resources.items() if amount}
    fit: int = sum(min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in asked.items()) for node in nodes)
    return max(1, fit if config.resources.max_concurrent is None else min(fit, config.resources.max_concurrent))


def _resources(config: StudyConfig) -> dict[str, float]:
    """What each trial asks of Ray.

    Raises:
        ConfigError: for more than any machine of the cluster has.
    """
    wanted = config.resources
    available = ray.cluster_resources()
    gpus = wanted.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if available.get("GPU", 0) else 0.0
    for name, amount, path in (("CPU", wanted.cpus_per_trial, "cpus_per_trial"), ("GPU", gpus, "gpus_per_trial")):
        most = max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if amount > most:
            raise ConfigError(
                f"a trial must fit on one machine, but resources.{path} is {amount:g} and the largest has {most:g}: ask for "
                f"less, e.g. --resources.{path.replace('_', '-')} {most:g}"
            )
    return {"cpu": wanted.cpus_per_trial, "gpu": gpus}


def _scheduler(config: StudyConfig) -> TrialScheduler:
    """Tune's scheduler, comparing regulation epochs: see ``searcher.epoch_result`` for what it is shown."""
    settings, objective = config.scheduler, config.objectives[0]
    compared = {"time_attr": REGULATION_EPOCH, "metric": metric_key(objective.metric), "mode": objective.mode}
    match settings.name:
        case "none":
            return FIFOScheduler()
        case "asha":
            return AsyncHyperBandScheduler(
                **compared,
                max_t=config.trial.regulation.epochs,
                grace_period=min(settings.grace_epochs, config.trial.regulation.epochs),
                reduction_factor=settings.reduction_factor,
            )
        case "median":
            return MedianStoppingRule(
                **compared,
                grace_period=settings.grace_epochs,
                min_time_slice=math.inf,  # below it Tune pauses trials that have company
            )
