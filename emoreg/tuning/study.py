"""A study on Ray Tune: controls and searched trials through one pool of workers, between ``driver`` here and ``worker`` there.

Every trial is ``run_trial``; Ray and Optuna stand around it. The driver alone writes the records, from what trials report.
Tune's own state is never restored from: Optuna's history and the records are the study's, and running it again resumes it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import ray
from ray import tune
from ray.tune import TuneError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from sqlalchemy.exc import OperationalError

from emoreg.config import StudyConfig, Value
from emoreg.config.search_space import lengths
from emoreg.errors import UserError
from emoreg.results.records import Records
from emoreg.storage.files import storage_full_error
from emoreg.storage.working_copy import WorkingCopy, scratch
from emoreg.tracking import tensorboard
from emoreg.training.experience import ExperienceStore
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.driver import Driver, Progress, Stop, StudyEnd, push
from emoreg.tuning.joining import join
from emoreg.tuning.messages import REGULATION_EPOCH, metric_key
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.placement import Placement, placed
from emoreg.tuning.postgres import is_postgresql, no_answer_error
from emoreg.tuning.preflight import named_study, offer_image_sets, provenance, storage_uri, store_uri
from emoreg.tuning.reconcile import reconcile, warm_start
from emoreg.tuning.searcher import OptunaSearcher
from emoreg.tuning.signals import stop_on_signals
from emoreg.tuning.worker import Places, Workplace, train

# What Tune would do for every trainable of anybody's and emoreg does itself, or not at all.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # pre-training reports progress, never the metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records and events are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials save
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # how many wait for a place is decided in the searcher
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",  # a trial that is stopped ends the write of its checkpoint first
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune begins such trials again itself, and tells nobody
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray 2.60 warns of its coming default without it
}


def run_study(
    config: StudyConfig,
    coordinator: Coordinator,
    records: Records,
    progress: Progress,
    *,
    address: str | None = None,
    command: str | None = None,
) -> StudyEnd:
    """Run what is missing of a study, until all is there, it is told to stop, or faults in code stop it.

    The first SIGINT or SIGTERM lets each trial finish its step and save; a second one, or the end of
    ``resources.grace_seconds`` after SIGTERM, leaves at once. Either way, running the study again goes on.

    Args:
        config: checked by ``preflight``; the caller holds the study's lock.
        coordinator: entered: see ``preflight.driving``.
        records: of the study; written as trials end.
        progress: told what happens.
        address: of a Ray cluster ("auto" for the one on this machine); None starts Ray here for the time of the study.
        command: what was typed, for the records.

    Raises:
        ConfigError: for resources that the cluster will never have.
        StorageError: where the storage is full or cannot be written; what was whole stays whole.
    """
    stop = Stop(config.resources)
    copy = coordinator.copy
    with stop_on_signals(stop.ask), _own_errors(config), _pushed(copy):
        with coordinator.turn():
            records.refresh()
            searcher = _take_up(config, coordinator, records, progress, stop)
        if not searcher.has_work:
            return "whole"
        _start_ray(address)
        try:
            places = Places(
                storage=storage_uri(config),
                store=store_uri(config),
                token=coordinator.token,
                locks=coordinator.shared_run_locks(store_uri(config), is_cluster=address is not None),
            )
            patience = coordinator.patience
            store = ExperienceStore(places.store, leases=places.locks.open(patience), patience=patience)
            placement = Placement(config, say=progress.say)
            driver = Driver(config, copy, records, progress, searcher, store, stop, provenance(command))
            workplace = Workplace(
                places=ray.put(places),
                study=config.name,
                lengths=lengths(config),
                share=config.experience.share,
                offered=None if address is None and not copy.is_remote else offer_image_sets(config),
                checkpoint_seconds=config.resources.checkpoint_seconds,
                stop_signal=driver.stop_signal,
            )
            # The signals once more: Ray has put handlers of its own over ours.
            with store.running(config.name) as driver.heartbeat, stop_on_signals(stop.ask):
                driver.tidy()
                try:
                    _fit(config, searcher, driver, workplace, placement)
                    driver.tidy()
                except KeyboardInterrupt:  # told twice, or out of grace
                    return driver.end_run("interrupted")
        finally:
            ray.shutdown()
            records.write()
        if driver.storage_error is not None:
            raise driver.storage_error
        if driver.num_broken >= config.resources.max_failures:
            return driver.end_run("broken")
        return driver.end_run("whole" if searcher.is_done else "interrupted")


def _take_up(config: StudyConfig, coordinator: Coordinator, records: Records, progress: Progress, stop: Stop) -> OptunaSearcher:
    """Bring Optuna's history, the records and the events into line, and begin from there."""
    copy = coordinator.copy
    study = open_study(config, copy.folder, coordinator.patience)
    for sentence in warm_start(study, config, partial(named_study, config)):
        progress.say(sentence)
    reconciled = reconcile(study, config, records.trials)
    for sentence in reconciled.said:
        progress.say(sentence)
    for identity, number in reconciled.renumbered.items():
        records.add_trial(dataclasses.replace(records.trials[identity], number=number))
    tensorboard.write_experiment(copy.folder, config)
    has_event = {found.name.split("/")[1] for found in copy.files.find("events") if found.name.endswith(".end")}
    for record in records.trials.values():  # an earlier driver may have been killed between a record and its event
        if record.identity not in has_event:
            tensorboard.finish(copy.folder, record)
    return OptunaSearcher(
        study,
        config,
        controls=config.control_trials(),
        confirmed=config.confirmed,
        reruns=reconciled.reruns,
        records=records.trials,
        is_stopping=lambda: stop.is_asked,
        on_repeat=partial(_number, records),
        coordinator=coordinator if is_postgresql(config.optuna_storage) else None,
        refresh=records.refresh,
    )


def _fit(config: StudyConfig, searcher: OptunaSearcher, driver: Driver, workplace: Workplace, placement: Placement) -> None:
    driver.slots, searcher.startable = placement.slots, placement.startable
    with scratch() as folder:  # Tune's own state: ours is in storage
        tune.Tuner(
            tune.with_resources(partial(train, workplace=workplace), partial(placed, by_backbone=placement.by_backbone)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(config),
                num_samples=-1,  # until the searcher says that it has finished
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=config.name,
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher begins broken trials again, after a pause
                callbacks=[driver],
            ),
        ).fit()


def _start_ray(address: str | None) -> None:
    """Start Ray here, or join the cluster at ``address``.

    Raises:
        ConfigError: for a cluster that does not answer, or does not let this driver in.
    """
    os.environ.update(_TUNE_SETTINGS)
    if address is None:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _TUNE_SETTINGS},
        )
    else:
        join(address, settings=_TUNE_SETTINGS, from_outside="`emoreg submit`")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a broken trial's traceback is in its record


def _number(records: Records, identity: str, number: int, params: Mapping[str, Value]) -> None:
    """Make a trial that ran as a control a part of the search too, which proposed the same configuration."""
    record = records.trials[identity]
    if record.number is None:
        records.add_trial(dataclasses.replace(record, number=number, params=json.dumps(dict(params))))


@contextmanager
def _pushed(copy: WorkingCopy) -> Iterator[None]:
    """Leave in the storage what the driver wrote, however it ends."""
    try:
        yield
    finally:
        push(copy, "records", "optuna.journal", "events")


@contextmanager
def _own_errors(config: StudyConfig) -> Iterator[None]:
    """Let an error of ours through that Tune wraps in its own, and tell of a storage that cannot be used any more."""
    try:
        yield
    except (TuneError, OSError, OperationalError) as error:
        cause: BaseException | None = error
        while cause is not None:  # Tune raises its own while it handles ours
            if isinstance(cause, UserError):
                raise cause from None
            full = storage_full_error(cause.errno, cause) if isinstance(cause, OSError) else None
            if full is not None:
                raise full from error
            if isinstance(cause, OperationalError) and config.optuna_storage is not None:
                raise no_answer_error(config.optuna_storage, cause) from error
            cause = cause.__cause__ or cause.__context__
        raise


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
