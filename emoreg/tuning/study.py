"""A study on Ray Tune: controls and searched trials share one pool of workers, which run ``trainable.train``.

Every trial is ``run_trial``; Ray and Optuna stand around it. The driver alone writes the records, from what trials report.
Tune's own state is never restored from: Optuna's history and the records are the study's, and running it again resumes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, TuneError
from sqlalchemy.exc import OperationalError

from emoreg.config import StudyConfig, replace_paths
from emoreg.config.resolved import Fingerprints, resolve_trial
from emoreg.config.search_space import lengths
from emoreg.errors import UserError
from emoreg.results.tables import Records
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files, refused_error, storage_full_error
from emoreg.storage.housekeeping import running
from emoreg.storage.working_copy import scratch
from emoreg.tracking import tensorboard
from emoreg.tracking.live_status import LiveStatus
from emoreg.tracking.loggers import start_loggers
from emoreg.tracking.observer import Observers, StudyObserver
from emoreg.tracking.study_tensorboard import StudyTensorBoard
from emoreg.tuning.arms import searching_arms
from emoreg.tuning.auto_settings import study_compilations, study_precisions
from emoreg.tuning.bridge import TuneBridge
from emoreg.tuning.budget import Budget
from emoreg.tuning.coordination import SharedRunLocks, StopSignal
from emoreg.tuning.coordinator import Coordinator, coordinate
from emoreg.tuning.disk import check_disk, estimate_disk
from emoreg.tuning.dispatcher import Dispatcher
from emoreg.tuning.images import account_images, count_images, offer_image_sets, prepare_image_sets
from emoreg.tuning.inbox import Inbox
from emoreg.tuning.manifest import provenance, write_manifest
from emoreg.tuning.observers import (
    ExperiencePruner,
    Heartbeat,
    NetworkPruner,
    StorageSync,
    TrialEnds,
    TrialStopper,
)
from emoreg.tuning.optuna_study import History, open_beside, open_study
from emoreg.tuning.placement import Placement, is_node_lost
from emoreg.tuning.postgres import no_answer_error
from emoreg.tuning.preflight import absolute, adopt_controls, check_study, lost_epochs, named_study, store_uri
from emoreg.tuning.private_ray import TUNE_SETTINGS, PrivateRay
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.ray_session import ray_session
from emoreg.tuning.reconcile import Resolve, reconcile, warm_start
from emoreg.tuning.recorder import Recorder
from emoreg.tuning.retry import RetryPolicy
from emoreg.tuning.scheduling import scheduler_of
from emoreg.tuning.searcher import TuneSearcher
from emoreg.tuning.signals import Stop, stop_on_signals
from emoreg.tuning.source import OptunaSource, Searches
from emoreg.tuning.trainable import Places, WorkerContext, log_tail, train
from emoreg.tuning.user_code import UserCode

Prepare = Callable[[Coordinator, Records], None]


class RunEnd(StrEnum):
    """How a run of a study ended."""

    COMPLETED = "completed"
    """Every trial ended."""
    INTERRUPTED = "interrupted"
    """It was told to stop."""
    ABORTED = "aborted"
    """Faults in code broke ``resources.max_failures`` trials."""


def run_study(
    config: StudyConfig,
    *,
    address: str | None = None,
    observers: Sequence[StudyObserver] = (),
    command: str | None = None,
    prepare: Prepare | None = None,
    private: PrivateRay | None = None,
) -> RunEnd:
    """Run what is missing of a study, until all is there, it is told to stop, or faults in code stop it.

    The first signal (see ``signals``) lets each trial finish its step and save; SIGINT or SIGTERM after it, or the end of
    ``resources.grace_seconds`` after another one than SIGINT, leave at once. Either way, running the study again goes on.

    Args:
        address: of a Ray cluster ("auto" for the one on this machine); None starts Ray here for the time of the study.
        observers: told what happens, after emoreg's own.
        command: what was typed, for the records.
        prepare: called once the study is held and before anything of it runs.
        private: the Ray of this study, with ``TUNE_SETTINGS``, if it was begun before.

    Raises:
        ConfigError: for a study that cannot run, or resources that the cluster will never have.
        StorageError: if another process drives the study, or the storage is full or cannot be written; what was whole stays.
    """
    check_study(config, address=address)
    stop = Stop(config.resources.grace_seconds)
    told = Observers(observers)
    budget = Budget(config, stop, told.on_message)
    with (
        _own_errors(config),
        stop_on_signals(stop.ask),
        coordinate(config, notify=told.on_message, should_stop=lambda: stop.is_asked) as coordinator,
    ):
        run = _StudyRun(config, coordinator, told, prepare)
        if not run.dispatcher.has_work:
            return RunEnd.COMPLETED
        budget.check(run.runs)
        told.on_message("starting Ray")
        with (
            ray_session(address, TUNE_SETTINGS, private=private),
            run.driven(address, stop, (budget, *observers), command) as (tuner, bridge),
            stop_on_signals(stop.ask),  # once more: Ray has put handlers of its own over ours
            suppress(KeyboardInterrupt),  # told twice, or out of grace
        ):
            tuner.fit()
        if bridge.storage_error is not None:
            raise bridge.storage_error
        return run.end


class _StudyRun:
    """What one run of a study is made of.

    Attributes:
        dispatcher: hands out the trials.
        runs: rows of the study's runs, earlier ones too.
        end: how it ended.
    """

    end = RunEnd.INTERRUPTED

    def __init__(self, config: StudyConfig, coordinator: Coordinator, told: StudyObserver, prepare: Prepare | None) -> None:
        """Bring Optuna's history, the records and the events into line, and begin from there."""
        self._config = config
        self._coordinator = coordinator
        self._copy = coordinator.copy
        told.on_message("preparing image sets")
        fingerprints = prepare_image_sets(config, told.on_message)
        images = account_images(config, told.on_message)
        self._records = Records(self._copy.folder, coordinator.turn)
        self._networks = NetworkPruner(config, self._copy, self._records.trials)
        self.runs = self._records.runs
        with coordinator.turn():
            self._records.refresh()
            if prepare is not None:
                prepare(coordinator, self._records)
            self._precisions = study_precisions(config, Files(str(self._copy.folder)), self._records.trials.values())
            self._compilations = study_compilations(
                config,
                Files(str(self._copy.folder)),
                self._records.trials.values(),
                self._precisions,
                count_images(config),
                told.on_message,
            )
            write_manifest(config, self._copy.folder, fingerprints, self._precisions, images, self._compilations)
            self._copy.push("study.json")
            self.dispatcher = self._take_up(fingerprints, told)

    def _take_up(self, fingerprints: Fingerprints, told: StudyObserver) -> Dispatcher:
        config, records = self._config, self._records
        resolved = partial(resolve_trial, fingerprints=fingerprints)
        beside = [Job(trial=resolved(trial), role="control") for trial in config.control_trials()]
        beside += [Job(trial=resolved(trial), role="confirm") for trial in config.confirmed]
        adopt_controls((job.identity for job in beside), records)
        searching = searching_arms(config, count_images(config))
        history = open_study(config, self._copy.folder, self._coordinator.patience)
        for message in lost_epochs(records):
            told.on_message(message)
        sources = []
        for arm in (config, *searching):
            source, reruns = self._search(arm, history, resolved, told)
            sources.append(source)
            beside += reruns
        tensorboard.write_experiment(self._copy.folder, config)
        self._write_missing_ends()
        self._networks.sweep()
        retry = RetryPolicy(config.resources, is_node_lost, has_one_disk=not self._copy.is_remote)
        return Dispatcher(config, Searches(sources), records, self._coordinator, retry=retry, jobs=beside)

    def _search(
        self, config: StudyConfig, history: History, resolved: Resolve, told: StudyObserver
    ) -> tuple[OptunaSource, list[Job]]:
        """One search of the study, brought into line with the records, and what of it is to be run again."""
        records, is_own = self._records, config is self._config
        search_of = None if is_own else config.trial.control
        study = history if is_own else open_beside(history, config)
        messages = warm_start(study, config, partial(named_study, config), resolved)
        rows = {key: row for key, row in records.trials.items() if row.number is None or row.search_of == search_of}
        reconciled = reconcile(study, config, rows, resolved)
        for message in (*messages, *reconciled.messages):
            told.on_message(message if is_own else f"search of {search_of}: {message}")
        for identity, number in reconciled.renumbered.items():
            records.add_trial(dataclasses.replace(records.trials[identity], number=number))
        reruns = [
            Job(
                trial=resolved(replace_paths(config.trial, rerun.params)),
                role="search",
                number=rerun.number,
                params=rerun.params,
                search_of=search_of,
            )
            for rerun in reconciled.reruns
        ]
        source = OptunaSource(
            study,
            config,
            resolved=resolved,
            records=records.trials,
            coordinator=self._coordinator,
            inbox=Inbox(self._copy.files) if is_own else None,
            notify=told.on_message,
            on_repeat=partial(_number, records),
            search_of=search_of,
        )
        return source, reruns

    def _write_missing_ends(self) -> None:
        """Write the ends of trials into their events: an earlier driver may have been killed between a record and its event."""
        has_end = {found.name.split("/")[1] for found in self._copy.files.find("events") if found.name.endswith(".end")}
        for record in self._records.trials.values():
            if record.identity not in has_end:
                tensorboard.finish(self._copy.folder, record)

    @contextmanager
    def driven(
        self, address: str | None, stop: Stop, observers: Sequence[StudyObserver], command: str | None
    ) -> Iterator[tuple[tune.Tuner, TuneBridge]]:
        """Tune's tuner of the run and what follows its trials; the end writes down how the run ended."""
        config, copy, records = self._config, self._copy, self._records
        told, patience, is_alone = Observers(observers), self._coordinator.patience, self._coordinator.is_alone
        locks = SharedRunLocks(
            store=store_uri(config),
            is_cluster=address is not None,
            database=self._coordinator.database,
        )
        store = ExperienceStore(Files(locks.store, patience=patience), locks=locks.open(patience))
        placement = self._placed(told)
        signal = StopSignal()
        recorder = Recorder(records, provenance(config, command))
        with running(store.files, config.name, is_alone=is_alone) as beat:
            all_told = Observers(
                (
                    Heartbeat(beat),
                    TrialStopper(copy.files, stop, signal),
                    TrialEnds(copy),
                    LiveStatus(copy.folder, is_alone=is_alone),
                    StudyTensorBoard(copy, config),
                    StorageSync(self._coordinator),
                    self._networks,
                    ExperiencePruner(config, copy, store, notify=told.on_message),
                    *start_loggers(config, told.on_message),
                    *observers,
                )
            )
            bridge = TuneBridge(
                config,
                recorder,
                self.dispatcher,
                all_told,
                stop,
                slots=placement.slots,
                log_tail=partial(log_tail, copy.files),
            )
            context = self._worker_context(locks, signal, is_cluster=address is not None)
            all_told.on_run_start(bridge.status)
            try:
                with scratch() as folder:
                    yield self._tuner(context, placement, bridge, stop, str(folder)), bridge
            finally:
                records.write()
                if bridge.storage_error is None:
                    self.end = self._ending(bridge)
                    recorder.end_run(self.end, stop.reason if self.end is RunEnd.INTERRUPTED else None)
                    all_told.on_run_end(bridge.status)

    def _placed(self, told: StudyObserver) -> Placement:
        """Where trials run, once it can hold them and the disk what they leave."""
        placement = Placement(self._config, told.on_message)
        placement.check()
        placement.check_gpus()
        check_disk(self._config, estimate_disk(self._config, slots=placement.slots()))
        waiting = placement.waiting()
        if waiting is not None:
            told.on_message(waiting)
        return placement

    def _worker_context(self, locks: SharedRunLocks, signal: StopSignal, *, is_cluster: bool) -> WorkerContext:
        config = self._config
        places = Places(storage=absolute(config.storage), token=self._coordinator.token, locks=locks)
        return WorkerContext(
            places=ray.put(places),
            study=config.name,
            lengths=lengths(config),
            share=config.experience.share,
            offered=offer_image_sets(config) if is_cluster or self._copy.is_remote else None,
            precisions=self._precisions,
            compiled={name: found.compiled for name, found in self._compilations.items()},
            checkpoint_seconds=config.resources.checkpoint_seconds,
            metrics=tuple(f"val_{name}" for name in config.trial.metrics),
            stop_signal=signal,
            user_code=UserCode.collect(),
        )

    def _ending(self, bridge: TuneBridge) -> RunEnd:
        if bridge.num_aborted >= self._config.resources.max_failures:
            return RunEnd.ABORTED
        return RunEnd.COMPLETED if self.dispatcher.is_done else RunEnd.INTERRUPTED

    def _tuner(self, context: WorkerContext, placement: Placement, bridge: TuneBridge, stop: Stop, folder: str) -> tune.Tuner:
        return tune.Tuner(
            tune.with_resources(partial(train, context=context), partial(_resources, bundles=placement.bundles)),
            tune_config=tune.TuneConfig(
                search_alg=TuneSearcher(
                    self.dispatcher,
                    slots=placement.slots,
                    is_stopping=lambda: stop.is_asked,
                    may_wait=placement.may_wait,
                ),
                scheduler=scheduler_of(self._config),
                num_samples=-1,  # until the searcher says that it has finished
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=self._config.name,
                storage_path=folder,  # Tune's own state: ours is in storage
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher begins broken trials again, after a pause
                callbacks=[bridge],
            ),
        )


def _resources(config: Mapping[str, Any], bundles: Mapping[str, PlacementGroupFactory]) -> PlacementGroupFactory:
    """What Tune asks of Ray for a job."""
    return bundles[config[JOB].trial.config.backbone]


def _number(records: Records, job: Job) -> None:
    """Make a trial that ran as a control a part of the search too, which proposed the same configuration."""
    record = records.trials[job.identity]
    if record.number is None and record.repeats is None:
        params = json.dumps(dict(job.params))
        records.add_trial(
            dataclasses.replace(record, number=job.number, params=params, search_of=job.search_of, repeats=job.repeats)
        )


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
            if isinstance(cause, OSError) and cause.errno is not None:
                raise (storage_full_error(cause.errno, cause) or refused_error(cause)) from error
            if isinstance(cause, OperationalError) and config.optuna_storage is not None:
                raise no_answer_error(config.optuna_storage, cause) from error
            cause = cause.__cause__ or cause.__context__
        raise
