"""Loggers that a study names: told in a thread of their own, left out at their first failure."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import emoreg
from emoreg.config import StudyConfig, resolve_trial
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import ConfigError
from emoreg.results.records import EpochRecord, RunRecord
from emoreg.tracking.loggers import LoggerThread, TrialLogger, check_loggers, start_loggers
from emoreg.tracking.observer import RunStatus, StudyObserver
from emoreg.tuning.user_code import UserCode
from tests.helpers.studies import ended, tiny_study
from tests.helpers.waiting import PATIENCE

STUDY = tiny_study()
TRIAL = resolve_trial(STUDY.trial)


def status(ending: str | None = None) -> RunStatus:
    run = RunRecord(run=1, study="tiny", storage="runs", started="", ending=ending)
    return RunStatus(run=run, num_running=0, num_waiting=0, trials={}, num_planned=3)


def row(epoch: int, stage: Any = "regulation", trial: ResolvedTrial = TRIAL, **changes: Any) -> EpochRecord:
    measured: dict[str, Any] = {
        **{"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": float("nan"), "val_accuracy": epoch / 10},
        **{"learning_rate": 0.1, "images_per_second": 10.0, "seconds": 2.0, "measured_balance": 0.5},
    }
    return EpochRecord(
        identity=trial.identity, stage=stage, epoch=epoch, step=epoch, measured_balance_std=None, **{**measured, **changes}
    )


class Calls(TrialLogger[str]):
    """Notes what a tracker is told."""

    def __init__(self, study: StudyConfig) -> None:
        super().__init__(study)
        self.calls: list[Any] = []
        self.settings: Mapping[str, Any] = {}

    def begin(self, trial: ResolvedTrial, settings: Mapping[str, Any]) -> str:
        self.settings = settings
        self.calls.append("begin")
        return trial.identity

    def log(self, run: str, numbers: Mapping[str, float], epoch: int) -> None:
        self.calls.append((epoch, dict(numbers)))

    def finish(self, run: str, numbers: Mapping[str, float], status: str) -> None:
        self.calls.append((status, dict(numbers)))


def test_a_trial_is_a_run_with_its_settings_its_numbers_and_its_end() -> None:
    logger = Calls(STUDY)
    logger.on_start(TRIAL, "search")
    logger.on_epoch(TRIAL, row(1, "pretraining", val_accuracy=None))
    logger.on_epoch(TRIAL, row(1, metrics='{"val_f1": 0.25}'))
    logger.on_end(TRIAL, ended(STUDY.trial))
    logger.on_run_end(status("completed"))
    begin, first, second, end = logger.calls
    assert begin == "begin"
    assert logger.settings["identity"] == TRIAL.identity
    assert (logger.settings["role"], logger.settings["regulation.balance"]) == ("search", 0.5)
    assert first == (1, {f"pretraining/{name}": value for name, value in ALWAYS.items()})
    assert second == (
        1,
        {f"regulation/{name}": value for name, value in (ALWAYS | {"val_accuracy": 0.1, "val_f1": 0.25}).items()},
    )
    assert end[0] == "finished"
    assert (end[1]["trial/val_accuracy"], end[1]["trial/device_seconds"]) == (0.5, 10.0)


ALWAYS = {
    **{"train_loss": 1.0, "train_accuracy": 0.5, "learning_rate": 0.1, "images_per_second": 10.0},
    **{"seconds": 2.0, "measured_balance": 0.5},
}
"""What each epoch above has: numbers that are finite, and those alone."""


def test_a_trial_begun_again_is_one_run_and_each_epoch_is_logged_once() -> None:
    logger = Calls(STUDY)
    for epochs in ((1, 2), (1, 2, 3)):
        logger.on_start(TRIAL, "search")
        for epoch in epochs:
            logger.on_epoch(TRIAL, row(epoch))
        logger.on_retry(TRIAL, "its worker died")
    assert [call if call == "begin" else call[0] for call in logger.calls] == ["begin", 1, 2, 3]


def test_runs_of_trials_that_did_not_end_are_closed_and_one_that_never_began_is_told() -> None:
    logger = Calls(STUDY)
    other = resolve_trial(dataclasses.replace(STUDY.trial, seed=1))
    logger.on_saved(TRIAL)
    logger.on_start(TRIAL, "search")
    logger.on_saved(TRIAL)
    logger.on_end(other, ended(other.config, status="failed"))
    logger.on_start(TRIAL, "search")
    logger.on_run_end(status("interrupted"))
    assert [call if call == "begin" else call[0] for call in logger.calls] == [
        *("begin", "interrupted"),
        *("begin", "failed"),
        *("begin", "interrupted"),
    ]


def test_passwords_in_settings_are_hidden() -> None:
    logger = Calls(STUDY)
    images = dataclasses.replace(STUDY.trial.task, path="s3://key:hush@bucket/x")
    logger.on_start(resolve_trial(dataclasses.replace(STUDY.trial, task=images)), "search")
    assert logger.settings["task.path"] == "s3://key:***@bucket/x"


def test_a_logger_of_one_s_own_hears_everything_in_its_thread() -> None:
    heard: list[tuple[str, str]] = []

    def note(what: str) -> None:
        heard.append((what, threading.current_thread().name))

    @emoreg.logger("mine")
    class Mine(StudyObserver):
        def __init__(self, study: StudyConfig) -> None:
            note(f"study {study.name}, notify {study.notify}")

        def on_run_start(self, status: RunStatus) -> None:
            note("on_run_start")

        def on_start(self, trial: ResolvedTrial, role: Any) -> None:
            note(f"on_start {role}")

        def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
            note(f"on_epoch {row.epoch}")

        def on_end(self, trial: ResolvedTrial, record: Any) -> None:
            note("on_end")

        def on_run_end(self, status: RunStatus) -> None:
            note(f"on_run_end {status.run.ending}")

    config = tiny_study(loggers=("mine",), notify="https://example.com/hush")
    check_loggers(config)
    messages: list[str] = []
    (logger,) = start_loggers(config, messages.append)
    logger.on_run_start(status())
    logger.on_start(TRIAL, "search")
    logger.on_epoch(TRIAL, row(1))
    logger.on_end(TRIAL, ended(STUDY.trial))
    logger.on_run_end(status("completed"))
    assert [what for what, _ in heard] == [
        "study tiny, notify https://example.com/***",
        *("on_run_start", "on_start search", "on_epoch 1", "on_end", "on_run_end completed"),
    ]
    assert {thread for _, thread in heard} == {"logger mine"}
    assert messages == []


@pytest.mark.parametrize("where", ["made", "told"])
def test_a_failure_is_told_once_and_ends_nothing(where: str) -> None:
    class Broken(StudyObserver):
        def __init__(self) -> None:
            if where == "made":
                raise OSError("no answer from https://me:hush@host")

        def on_start(self, trial: ResolvedTrial, role: Any) -> None:
            raise OSError("no answer from https://me:hush@host")

    messages: list[str] = []
    logger = LoggerThread("broken", Broken, messages.append)
    for _ in range(3):
        logger.on_start(TRIAL, "search")
    logger._thread.join()
    for _ in range(3):
        logger.on_tick(status())
    logger.on_run_end(status("completed"))
    assert messages == [
        "The logger 'broken' is left out until the study is run again, for it failed (OSError: no answer from "
        "https://me:***@host); the records have everything"
    ]


def test_one_that_hangs_holds_up_nothing_and_is_left_behind() -> None:
    goes_on = threading.Event()

    class Hanging(StudyObserver):
        def on_start(self, trial: ResolvedTrial, role: Any) -> None:
            goes_on.wait()

    messages: list[str] = []
    logger = LoggerThread("hanging", Hanging, messages.append, last_seconds=0.01)
    logger.on_start(TRIAL, "search")
    logger.on_epoch(TRIAL, row(1))
    logger.on_run_end(status("completed"))
    assert messages == ["The logger 'hanging' does not come to its end, and is left behind: the records have everything"]
    goes_on.set()
    logger._thread.join()


def test_what_is_not_there_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^Register the logger 'mine' in the study file \(@emoreg.logger\('mine'\)\)"):
        check_loggers(tiny_study(loggers=("mine",)))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # as it leaves one where it has run
    for name in ("wandb", "mlflow", "aim"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=rf"^Install it \(pip install -e '.\[{name}\]'\), or drop the logger: "):
            check_loggers(tiny_study(loggers=(name,)))


def test_a_logger_stays_with_the_driver() -> None:
    lock = threading.Lock()  # which cannot be pickled

    @emoreg.logger("held")
    def held(study: StudyConfig) -> StudyObserver:
        with lock:
            return StudyObserver()

    assert b"held" not in UserCode.collect().pickled


OTHERS = pytest.mark.filterwarnings("default")  # whose warnings are not ours


def follow(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log one trial with a tracker that is installed, in a folder."""
    monkeypatch.chdir(folder)
    messages: list[str] = []
    config = tiny_study(loggers=(name,))
    check_loggers(config)
    (logger,) = start_loggers(config, messages.append)
    logger.on_start(TRIAL, "search")
    for epoch in (1, 2, 3):
        logger.on_epoch(TRIAL, row(epoch))
    logger.on_end(TRIAL, ended(STUDY.trial))
    logger.on_run_end(status("completed"))
    assert messages == []


@OTHERS
def test_mlflow_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="extra `mlflow` is not installed")
    for _ in range(2):
        follow("mlflow", tmp_path, monkeypatch)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert (run.info.run_name, run.info.status) == (TRIAL.identity, "FINISHED")
    assert run.data.params["regulation.balance"] == "0.5"
    history = client.get_metric_history(run.info.run_id, "regulation/val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert run.data.metrics["trial/val_accuracy"] == 0.5


@OTHERS
def test_aim_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aim = pytest.importorskip("aim", reason="extra `aim` is not installed")
    follow("aim", tmp_path, monkeypatch)
    repo = aim.Repo(str(tmp_path))
    (run_hash,) = repo.list_all_runs()
    run = aim.Run(run_hash, repo=repo, system_tracking_interval=None)
    assert (run.name, run.experiment) == (TRIAL.identity, "tiny")
    assert run["trial"]["regulation.balance"] == 0.5
    assert run["outcome"]["status"] == "finished"
    (found,) = [metric for metric in run.metrics() if metric.name == "val_accuracy"]
    assert found.context.to_dict() == {"stage": "regulation"}
    assert sorted(found.values.sparse_list()[1]) == [0.1, 0.2, 0.3]


@OTHERS
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow("wandb", tmp_path, monkeypatch)
    (written,) = tmp_path.glob(f"wandb/offline-run-*/run-tiny-{TRIAL.identity}.wandb")
    content = written.read_bytes()
    for text in (b"regulation/val_accuracy", b"trial/val_accuracy", b"regulation.balance", b"finished"):
        assert text in content


def test_wandb_without_a_key_says_so_and_does_not_ask(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="extra `wandb` is not installed")
    code = "from emoreg.tracking.loggers import WandB; from tests.helpers.studies import tiny_study; WandB(tiny_study())"
    without = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=without | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "ConfigError: Run `wandb login`, or set WANDB_MODE=offline" in done.stderr
