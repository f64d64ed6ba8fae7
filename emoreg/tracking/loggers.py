"""Loggers beside TensorBoard: observers that a study names, each in a thread of its own. None holds it up, or ends it.

Ours, to W&B, MLflow and Aim, import their package when they are made, and obey its environment.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from emoreg.config import StudyConfig, leaves, without_secrets
from emoreg.config.registry import LOGGERS
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import ConfigError
from emoreg.results.records import EpochRecord, Role, TrialRecord
from emoreg.tracking.observer import Call, Forwarder, RunStatus, StudyObserver

Logger = Callable[[StudyConfig], StudyObserver]
Run = TypeVar("Run")
_Factory = TypeVar("_Factory", bound=Logger)

_LAST_SECONDS = 60.0
"""What a logger has to write its last, at the end of a run; a sixth of it where the run was interrupted."""
_NO_NUMBERS = ("identity", "stage", "epoch", "step", "metrics")


def logger(name: str) -> Callable[[_Factory], _Factory]:
    """Register the decorated class or function as a logger, for ``StudyConfig.loggers``.

    It is called in the driver with the study's configuration, and returns a ``StudyObserver``. That is told everything but
    ticks, in a thread of its own. If it raises an error, the user is told, and it is left out until the study is run again.

    Example:
        >>> import emoreg
        >>> @emoreg.logger("bell")
        ... class Bell(emoreg.StudyObserver):
        ...     def __init__(self, study): ...
        ...     def on_end(self, trial, record):
        ...         print("\\a", record.identity)
        >>> emoreg.Study("mine", search_space={"drop_path": emoreg.Float(0, 0.5)}, loggers=("bell",)).config.loggers
        ('bell',)
    """
    return partial(LOGGERS.add, name)


def check_loggers(config: StudyConfig) -> None:
    """Refuse a study that names a logger which is not registered, or whose package is not installed.

    Raises:
        ConfigError: naming it.
    """
    for name in config.loggers:
        LOGGERS.require(name, of="loggers")
        if name not in LOGGERS.user_names() and not _is_installed(name):  # ours are called as the packages that they need
            raise ConfigError(
                f"Install it (pip install -e '.[{name}]'), or drop the logger: a logger's package must be installed, but "
                f"{name!r} is not"
            )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name, as W&B leaves its own in the working directory, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def start_loggers(config: StudyConfig, notify: Callable[[str], None]) -> list[LoggerThread]:
    """The loggers that a study names, each in a thread; ``notify`` is told of those that fail."""
    shown = config.without_password()
    return [LoggerThread(name, partial(LOGGERS[name], shown), notify) for name in config.loggers]


class LoggerThread(Forwarder):
    """Passes everything but ticks on to a logger in a thread of its own, until its first failure, which is told."""

    def __init__(
        self,
        name: str,
        make: Callable[[], StudyObserver],
        notify: Callable[[str], None],
        *,
        last_seconds: float = _LAST_SECONDS,
    ) -> None:
        """Begin: ``make`` makes the logger in its thread, and ``notify`` is told in the driver's why it is left out."""
        self._name, self._make, self._notify, self._last_seconds = name, make, notify, last_seconds
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def forward(self, call: Call) -> None:
        """Have the logger's thread make the call."""
        self._calls.put(call)

    def on_run_start(self, status: RunStatus) -> None:
        """Pass it on."""
        super().on_run_start(_still(status))

    def on_tick(self, status: RunStatus) -> None:
        """Tell if it has failed."""
        self._tell()

    def on_run_end(self, status: RunStatus) -> None:
        """Pass it on, and wait a while for the logger's last words."""
        super().on_run_end(_still(status))
        self._calls.put(None)
        self._thread.join(self._last_seconds / (6 if status.run.ending == "interrupted" else 1))
        if self._thread.is_alive():
            self._notify(f"The logger {self._name!r} does not come to its end, and is left behind: the records have everything")
        self._tell()

    def _work(self) -> None:
        try:
            observer = self._make()
            while (call := self._calls.get()) is not None:
                call(observer)
        except Exception as error:  # noqa: BLE001 - whatever happens to a logger, the study goes on
            self._error = error

    def _tell(self) -> None:
        if self._error is not None:
            why = without_secrets(f"{type(self._error).__name__}: {self._error}")
            self._error = None
            self._notify(
                f"The logger {self._name!r} is left out until the study is run again, for it failed ({why}); the records have "
                "everything"
            )


def _still(status: RunStatus) -> RunStatus:
    """The status with trials that do not grow meanwhile."""
    return dataclasses.replace(status, trials=dict(status.trials))


class TrialLogger(StudyObserver, ABC, Generic[Run]):
    """Base of loggers for which each trial is a run of its own: its settings, its numbers by epoch, how it ended.

    A trial that goes on from its checkpoint reports its former epochs again: within a run of the study, each is logged once.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self._runs: dict[str, Run] = {}
        self._last: dict[tuple[str, str], int] = {}

    @abstractmethod
    def begin(self, trial: ResolvedTrial, settings: Mapping[str, Any]) -> Run:
        """Begin the run of a trial, anew if it had one; ``settings`` by path, with its identity, role, backbone and control."""

    @abstractmethod
    def log(self, run: Run, numbers: Mapping[str, float], epoch: int) -> None:
        """Log the numbers of an epoch, by ``stage/name``."""

    @abstractmethod
    def finish(self, run: Run, numbers: Mapping[str, float], status: str) -> None:
        """End a run: as finished, pruned or failed, with what was measured, or as interrupted."""

    def on_start(self, trial: ResolvedTrial, role: Role) -> None:
        """Begin the run of a trial, which may have begun it before."""
        if trial.identity not in self._runs:
            texts = {path: without_secrets(value) if isinstance(value, str) else value for path, value in leaves(trial.config)}
            settings = {"identity": trial.identity, "role": role, **texts}
            self._runs[trial.identity] = self.begin(trial, settings)

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """Log an epoch that was not logged yet."""
        key = row.identity, row.stage
        if row.epoch > self._last.get(key, 0):
            self._last[key] = row.epoch
            columns = {name: value for name, value in dataclasses.asdict(row).items() if name not in _NO_NUMBERS}
            numbers = _finite({**columns, **json.loads(row.metrics)})
            named = {f"{row.stage}/{name}": value for name, value in numbers.items()}
            self.log(self._runs[row.identity], named, row.epoch)

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Log how a trial ended."""
        self.on_start(trial, record.role)
        names = ("val_accuracy", "val_loss", "test_accuracy", "measured_balance", "device_seconds", "regulation_epochs")
        numbers = {name: getattr(record, name) for name in names} | json.loads(record.metrics)
        named = {f"trial/{name}": value for name, value in _finite(numbers).items()}
        self.finish(self._runs.pop(record.identity), named, record.status)

    def on_saved(self, trial: ResolvedTrial) -> None:
        """End the run of a trial that will go on when the study is run again."""
        if trial.identity in self._runs:  # else it never had a worker
            self.finish(self._runs.pop(trial.identity), {}, "interrupted")

    def on_run_end(self, status: RunStatus) -> None:
        """End the runs of trials that were cut off."""
        while self._runs:
            _, run = self._runs.popitem()
            self.finish(run, {}, "interrupted")


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


@logger("wandb")
class WandB(TrialLogger[Any]):
    """Weights & Biases: the project WANDB_PROJECT, else one of the study's name. WANDB_MODE=offline needs no account."""

    def __init__(self, study: StudyConfig) -> None:
        super().__init__(study)
        import wandb

        self._wandb = wandb
        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(prompt=False, verify=False):  # else it would ask in the terminal
            raise ConfigError("Run `wandb login`, or set WANDB_MODE=offline: W&B must have an API key, but there is none")

    def begin(self, trial: ResolvedTrial, settings: Mapping[str, Any]) -> Any:
        """Begin a run in the place of the one that the trial may have had: all of its epochs come again."""
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", self.study.name),
            group=self.study.name,
            id=f"{self.study.name}-{trial.identity}",
            name=trial.identity,
            job_type=settings["role"],
            tags=[trial.config.backbone, trial.config.control],
            config=dict(settings),
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def log(self, run: Any, numbers: Mapping[str, float], epoch: int) -> None:
        """Log numbers with their epoch, by which charts can be drawn: the steps of W&B go on over the stages."""
        stage = next(iter(numbers)).partition("/")[0]
        run.log({**numbers, f"{stage}/epoch": epoch})

    def finish(self, run: Any, numbers: Mapping[str, float], status: str) -> None:
        """End a run."""
        run.summary.update({**numbers, "trial/status": status})
        run.finish(exit_code=int(status == "failed"))


@logger("mlflow")
class MLflow(TrialLogger[str]):
    """MLflow: the experiment MLFLOW_EXPERIMENT_NAME, else one of the study's name, where MLFLOW_TRACKING_URI says."""

    def __init__(self, study: StudyConfig) -> None:
        super().__init__(study)
        import mlflow

        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", study.name)
        found = self._client.get_experiment_by_name(name)
        self._experiment = self._client.create_experiment(name) if found is None else found.experiment_id

    def begin(self, trial: ResolvedTrial, settings: Mapping[str, Any]) -> str:
        """Begin a run in the place of the one that the trial may have had: all of its epochs come again."""
        for old in self._client.search_runs([self._experiment], f"tags.identity = '{trial.identity}'"):
            self._client.delete_run(old.info.run_id)
        run = self._client.create_run(self._experiment, run_name=trial.identity, tags={"identity": trial.identity})
        params = [self._mlflow.entities.Param(path, str(value)) for path, value in settings.items()]
        self._client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def log(self, run: str, numbers: Mapping[str, float], epoch: int) -> None:
        """Log numbers at a step, which is the epoch."""
        now = self._mlflow.utils.time.get_current_time_millis()
        self._client.log_batch(
            run, metrics=[self._mlflow.entities.Metric(name, value, now, epoch) for name, value in numbers.items()]
        )

    def finish(self, run: str, numbers: Mapping[str, float], status: str) -> None:
        """End a run."""
        self.log(run, numbers, 0)
        self._client.set_tag(run, "status", status)
        ends = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
        self._client.set_terminated(run, ends[status])


@logger("aim")
class Aim(TrialLogger[Any]):
    """Aim: an experiment of the study's name, in the repository of the folder in which the study was started."""

    def __init__(self, study: StudyConfig) -> None:
        super().__init__(study)
        import aim

        self._aim = aim

    def begin(self, trial: ResolvedTrial, settings: Mapping[str, Any]) -> Any:
        """Begin a run: Aim names each itself, so that a trial which goes on has a new one."""
        run = self._aim.Run(experiment=self.study.name, system_tracking_interval=None, capture_terminal_logs=False)
        run.name = trial.identity
        run["trial"] = dict(settings)
        return run

    def log(self, run: Any, numbers: Mapping[str, float], epoch: int) -> None:
        """Log numbers at an epoch, in the context of their stage."""
        for path, value in numbers.items():
            stage, name = path.split("/")
            run.track(value, name=name, epoch=epoch, step=epoch, context={"stage": stage})

    def finish(self, run: Any, numbers: Mapping[str, float], status: str) -> None:
        """End a run."""
        run["outcome"] = {**numbers, "status": status}
        run.close()
