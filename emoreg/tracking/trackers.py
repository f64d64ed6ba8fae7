"""Loggers to W&B, MLflow and Aim: a run for each trial. Each imports its package when it is made, and obeys its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from emoreg.config import StudyConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import ConfigError
from emoreg.tracking.loggers import TrialLogger, logger


@logger("wandb")
class WandB(TrialLogger[Any]):
    """Weights & Biases: the project WANDB_PROJECT, else one of the study's name. WANDB_MODE=offline needs no account."""

    def __init__(self, study: StudyConfig) -> None:
        """Begin for a study."""
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
        """Begin for a study."""
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
        """Begin for a study."""
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
