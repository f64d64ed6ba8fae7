"""A study on Ray Tune: controls and searched trials through one pool of workers. The only module that imports ray to run.

Every trial is ``run_trial``; Ray and Optuna stand around it. The driver alone writes the records, from what trials report.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import tune
from ray.tune import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from emoreg import tensorboard
from emoreg.config import StudyConfig, TrialConfig, Value
from emoreg.devices import device_name
from emoreg.errors import ConfigError, Diverged, UserError
from emoreg.preflight import local_storage, study_folder
from emoreg.records import EpochRecord, Records, Role, Status, TrialRecord, TrialResult, trial_record, utc_now
from emoreg.reporter import Event, Reporters
from emoreg.searcher import (
    REGULATION_EPOCH,
    STATUS,
    OptunaSearcher,
    epoch_result,
    last_result,
    metric_key,
    open_study,
)
from emoreg.trial import run_trial

# What Tune would do for every trainable of anybody's and emoreg does itself, or not at all.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # pre-training reports progress, never the metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records and events are ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray 2.60 warns of its coming default without it
}
_ERROR = "error"
_ANSWER_SECONDS = 5.0
_EPOCH_FIELDS = [item.name for item in dataclasses.fields(EpochRecord)]


class Progress(Protocol):
    """Who is told how the study goes on, in the driver."""

    def started(self, identity: str, config: TrialConfig, role: Role) -> None:
        """A trial began, or began again."""

    def epoch(self, row: EpochRecord) -> None:
        """A running trial ended an epoch."""

    def ended(self, record: TrialRecord) -> None:
        """A trial ended."""

    def tick(self) -> None:
        """Time passed."""


def run_study(config: StudyConfig, records: Records, progress: Progress, *, address: str | None = None) -> bool:
    """Run what is missing of a study, until all is there or the user interrupts.

    Args:
        config: checked by ``preflight``; the caller holds the study's lock.
        records: of the study; written as trials end.
        progress: told what happens.
        address: of a Ray cluster ("auto" for the one on this machine); None starts Ray here for the time of the study.

    Returns:
        Whether the study is whole: not interrupted.

    Raises:
        ConfigError: for resources that the cluster will never have.
    """
    storage, folder = local_storage(config.storage).resolve(), study_folder(config).resolve()
    study = open_study(config, folder)
    searcher = OptunaSearcher(
        study,
        config,
        controls=config.control_trials(),
        records=records.trials,
        on_repeat=partial(_number, records),
    )
    tensorboard.write_experiment(folder, config)
    for record in records.trials.values():  # an earlier driver may have been killed between a record and its event
        tensorboard.finish(folder, record)
    if not searcher.has_work:
        return True
    _start_ray(address)
    try:
        resources = _resources(config)
        trainable = tune.with_resources(partial(_train, storage=storage, folder=folder), resources)
        with _own_errors(), tempfile.TemporaryDirectory(prefix="emoreg-") as scratch:  # Tune's own state: ours is in storage
            tune.Tuner(
                trainable,
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
                    failure_config=tune.FailureConfig(max_failures=config.resources.max_retries),
                    callbacks=[_Driver(folder, records, progress)],
                ),
            ).fit()
    finally:
        records.write()
        ray.shutdown()
    return searcher.is_done


def _start_ray(address: str | None) -> None:
    """Start Ray here, or join the cluster at ``address``.

    Raises:
        ConfigError: for a cluster that does not answer, for which Ray would wait minutes.
    """
    os.environ.update(_TUNE_SETTINGS)
    try:
        if address is not None and address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
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
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def _number(records: Records, identity: str, number: int, params: Mapping[str, Value]) -> None:
    """Make a trial that ran as a control a part of the search too, which proposed the same configuration."""
    record = records.trials[identity]
    if record.number is None:
        records.add_trial(dataclasses.replace(record, number=number, params=json.dumps(dict(params))))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let an error of ours through that Tune wraps in its own."""
    try:
        yield
    except TuneError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _train(assignment: dict[str, Any], *, storage: Path, folder: Path) -> None:
    """Run one trial inside a Tune worker, which may have run others before."""
    config: TrialConfig = assignment["trial"]
    role: Role = assignment["role"]
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    cpus = tune.get_context().get_trial_resources().required_resources.get("CPU", 1.0)
    torch.set_num_threads(max(1, int(cpus)))
    history: list[EpochRecord] = []

    class ToTune:
        def report(self, event: Event) -> None:
            if isinstance(event, EpochRecord):
                history.append(event)
                result = epoch_result(event, role=role, num_epochs=config.regulation.epochs)
                tune.report({**result, "device": device_name(device)})

    with tensorboard.TensorBoardReporter(folder, config, assignment["params"]) as board:
        try:
            result = run_trial(
                config,
                Reporters(board, ToTune()),
                storage=storage,
                folder=folder / "trials" / config.identity,
                device=device,
            )
        except Diverged as diverged:
            last = last_result(
                role=role,
                epochs=sum(row.stage == "regulation" for row in history),
                accuracy=None,
                loss=None,
                device_seconds=sum(row.seconds for row in history),
                diverged=diverged,
            )
            ending: dict[str, Any] = {"reason": str(diverged)}
        except Exception as error:  # Tune tells its callbacks that a trial broke, but not of what
            tune.report({_ERROR: f"{type(error).__name__}: {error}"})
            raise
        else:
            last = last_result(
                role=role,
                epochs=config.regulation.epochs,
                accuracy=result.accuracy,
                loss=result.loss,
                device_seconds=result.experience_seconds + result.regulation_seconds,
            )
            ending = {"result": dataclasses.asdict(result)}
    tune.report({**last, **ending, "device": device_name(device)})


class _Driver(tune.Callback):
    """Turns what trials report into records, events and progress.

    A trial's record is written at its last result, before the searcher tells Optuna: a kill between the two leaves a record
    from which the next run tells Optuna, never a told trial without a record.
    """

    def __init__(self, folder: Path, records: Records, progress: Progress) -> None:
        self._folder = folder
        self._records = records
        self._progress = progress
        self._started: dict[str, str] = {}
        self._errors: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into the experiment's folder, to restore from: emoreg never does.
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._progress.tick()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        config: TrialConfig = trial.config["trial"]
        self._started[trial.trial_id] = utc_now()
        self._progress.started(config.identity, config, trial.config["role"])

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if "stage" in result:
            row = EpochRecord(**{name: result[name] for name in _EPOCH_FIELDS})
            self._records.add_epoch(row)
            self._progress.epoch(row)
        if _ERROR in result:
            self._errors[trial.trial_id] = result[_ERROR]
        elif result.get(STATUS) == "finished":
            self._end(trial, "finished", None, TrialResult(**result["result"]), result["device"])
        elif result.get(STATUS) == "diverged":
            self._end(trial, "pruned", result["reason"], None, result["device"])
        elif result.get("done"):
            self._end(trial, "pruned", "stopped by the scheduler", None, result["device"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason = self._errors.get(trial.trial_id, "its worker died")
        self._end(trial, "failed", reason, None, "unknown")

    def _end(self, trial: Trial, status: Status, reason: str | None, result: TrialResult | None, device: str) -> None:
        assigned = trial.config
        config: TrialConfig = assigned["trial"]
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
        )
        self._records.add_trial(record)
        tensorboard.finish(self._folder, record)
        self._progress.ended(record)


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
