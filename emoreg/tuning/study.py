"""A study on Ray Tune: controls and searched trials through one pool of workers, between ``driver`` here and ``worker`` there.

Every trial is ``run_trial``; Ray and Optuna stand around it. The driver alone writes the records, from what trials report.
Tune's own state is never restored from: Optuna's history and the records are the study's, and running it again resumes it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from emoreg.storage.files import UNWRITABLE
from emoreg.storage.locks import Claims
from emoreg.storage.working_copy import PATIENCE_SECONDS, WorkingCopy, scratch
from emoreg.tracking import tensorboard
from emoreg.training.experience import ExperienceStore
from emoreg.tuning.driver import Driver, Progress, Stop, StudyEnd, push, unwritable
from emoreg.tuning.messages import REGULATION_EPOCH, metric_key
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.placement import Placement
from emoreg.tuning.postgres import unanswered
from emoreg.tuning.preflight import named_study, offer_image_sets, provenance, storage_uri, store_uri
from emoreg.tuning.ray_session import ray_session
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
    copy: WorkingCopy,
    records: Records,
    progress: Progress,
    *,
    claims: Claims | None = None,
    address: str | None = None,
    command: str | None = None,
) -> StudyEnd:
    """Run what is missing of a study, until all is there, it is told to stop, or faults in code stop it.

    The first SIGINT or SIGTERM lets each trial finish its step and save; a second one, or the end of
    ``resources.grace_seconds`` after SIGTERM, leaves at once. Either way, running the study again goes on.

    Args:
        config: checked by ``preflight``; the caller holds the study's lock.
        copy: of the study's folder, with what is there already.
        records: of the study; written as trials end.
        progress: told what happens.
        claims: where the study may have other drivers: see ``preflight.driving``.
        address: of a Ray cluster ("auto" for the one on this machine); None starts Ray here for the time of the study.
        command: what was typed, for the records.

    Raises:
        ConfigError: for resources that the cluster will never have.
        StorageError: where the storage is full or cannot be written; what was whole stays whole.
    """
    stop = Stop(config.resources)
    with stop_on_signals(stop.ask), _own_errors(config), _pushed(copy):
        with nullcontext() if claims is None else claims.turn():
            records.refresh()
            searcher = _take_up(config, copy, records, progress, stop, claims)
        if not searcher.has_work:
            return "whole"
        with _running_ray(address, records):
            places = Places(
                storage=storage_uri(config),
                store=store_uri(config),
                database=None if claims is None else config.optuna_storage,
                is_cluster=address is not None,
            )
            store = ExperienceStore(places.store, leases=places.trunk_leases(), patience_seconds=PATIENCE_SECONDS)
            placement = Placement(config, progress.say)
            placement.check()
            waiting = placement.waiting()
            if waiting is not None:
                progress.say(waiting)
            driver = Driver(config, copy, records, progress, searcher, store, stop, provenance(command))
            workplace = Workplace(
                places=ray.put(places),
                study=config.name,
                lengths=lengths(config),
                share=config.experience.share,
                offered=None if address is None and not copy.is_remote else offer_image_sets(config),
                checkpoint_seconds=config.resources.checkpoint_seconds,
                stop_sign=driver.stop_sign,
            )
            # The signals once more: Ray has put handlers of its own over ours.
            with store.running(config.name) as driver.heartbeat, stop_on_signals(stop.ask):
                driver.tidy()
                try:
                    _fit(config, searcher, driver, workplace, placement)
                    driver.tidy()
                except KeyboardInterrupt:  # told twice, or out of grace
                    return driver.end_run("interrupted")
        if driver.unwritable is not None:
            raise driver.unwritable
        if driver.num_broken >= config.resources.max_failures:
            return driver.end_run("broken")
        return driver.end_run("whole" if searcher.is_done else "interrupted")


def _take_up(
    config: StudyConfig, copy: WorkingCopy, records: Records, progress: Progress, stop: Stop, claims: Claims | None
) -> OptunaSearcher:
    """Bring Optuna's history, the records and the events into line, and begin from there."""
    study = open_study(config, copy.folder)
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
        claims=claims,
        refresh=records.refresh,
    )


def _fit(config: StudyConfig, searcher: OptunaSearcher, driver: Driver, workplace: Workplace, placement: Placement) -> None:
    driver.slots = placement.slots

    def startable(pending: Sequence[str]) -> dict[str, tuple[str, ...]]:
        is_full = len(pending) >= placement.may_wait and searcher.num_running >= placement.slots()
        return {} if is_full else dict.fromkeys(placement.backbones, ())

    searcher.startable = startable
    with scratch() as folder:  # Tune's own state: ours is in storage
        tune.Tuner(
            tune.with_resources(
                partial(train, workplace=workplace), lambda assigned: placement.bundles(assigned["trial"].backbone)
            ),
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


@contextmanager
def _running_ray(address: str | None, records: Records) -> Iterator[None]:
    """A Ray for the time of a block, after which the records are written."""
    try:
        with ray_session(address, _TUNE_SETTINGS):
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a broken trial's traceback is in its record
            yield
    finally:
        records.write()


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
            if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
                raise unwritable(cause.errno, cause) from error
            if isinstance(cause, OperationalError) and config.optuna_storage is not None:
                raise unanswered(config.optuna_storage, cause) from error
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
