"""A study as the real TensorBoard serves it: started as a process of its own, asked over HTTP."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from emoreg.config import Choice, Float, Int, RegulationConfig, StudyConfig, TrialConfig, Value, replace_paths
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.results.outcome import Status
from emoreg.results.records import EpochRecord, Stage
from emoreg.tracking.tensorboard import METRICS, TensorBoardReporter, finish, write_experiment
from emoreg.training.events import BalanceSample, Confusion, ImagesSample
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.studies import ended
from tests.helpers.tensorboard import Server, metrics_of, seconds_apart, tensorboard
from tests.helpers.waiting import wait_for

EPOCHS = 5
SECONDS = 6.5
STUDY = StudyConfig(
    name="synthetic",
    trial=TrialConfig(regulation=RegulationConfig(epochs=EPOCHS)),
    search_space={
        "regulation.balance": Float(0.1, 0.9),
        "regulation.kind": Choice(("fixed", "learnable", "dynamic")),
        "pretraining.epochs": Int(1, 20),
        "regulation.optimizer.learning_rate": Float(1e-4, 1e-1, log=True),
        "regulation.batch_size": Choice((64, 128)),
    },
    controls=("plain", "shuffled"),
)
CLASSES = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised", "bored", "calm", "contemptuous")


@dataclasses.dataclass(frozen=True)
class Trial:
    config: TrialConfig
    params: dict[str, Value]
    status: Status | None  # None: it is still running
    epochs: int
    message: str | None = None

    @property
    def resolved(self) -> ResolvedTrial:
        return resolve_trial(self.config)


def _searched(
    balance: float, kind: str, length: int, learning_rate: float, status: Status | None, epochs: int, message: str | None = None
) -> Trial:
    values = (balance, kind, length, learning_rate, 128)
    params: dict[str, Value] = dict(zip(STUDY.search_space, values, strict=True))
    return Trial(replace_paths(STUDY.trial, params), params, status, epochs, message)


TRIALS = {
    "best": _searched(0.25, "dynamic", 4, 1e-3, "finished", EPOCHS),
    "good": _searched(0.5, "learnable", 8, 1e-2, "finished", EPOCHS),
    "pruned": _searched(0.75, "fixed", 2, 5e-2, "pruned", 2, "stopped by asha after regulation epoch 2"),
    "diverged": _searched(0.75, "learnable", 2, 1e-1, "pruned", 1, "the loss of regulation is not finite at step 12"),
    "failed": _searched(0.875, "fixed", 16, 1e-3, "failed", 0, "CUDA out of memory"),
    "running": _searched(0.375, "fixed", 6, 2e-3, None, 3),
    "plain": Trial(dataclasses.replace(STUDY.trial, control="plain"), {}, "finished", EPOCHS),
}
RESUMED = "good"
LATE = _searched(0.625, "learnable", 8, 1e-2, "failed", 2, "the node died")
"""It begins when the others have been read."""


def _accuracy(trial: Trial, epoch: int) -> float:
    return trial.resolved.config.regulation.balance / 2 + epoch / 16


def _epoch(trial: Trial, stage: Stage, epoch: int, **values: Any) -> EpochRecord:
    validated = stage == "regulation"
    row = EpochRecord(
        identity=trial.resolved.identity,
        stage=stage,
        epoch=epoch,
        step=epoch * 20,
        train_loss=2.0 / epoch,
        train_accuracy=0.1 * epoch,
        val_loss=2.5 / epoch if validated else None,
        val_accuracy=_accuracy(trial, epoch) if validated else None,
        learning_rate=1e-3,
        images_per_second=4000.0,
        seconds=1.0,
        measured_balance=trial.resolved.config.regulation.balance if validated else None,
        measured_balance_std=0.1 if validated else None,
    )
    return dataclasses.replace(row, **values)


def write_study(folder: Path) -> None:
    """Write a study with trials of every status; one was taken up again, one met a loss that is not finite."""
    generator = torch.Generator().manual_seed(0)
    write_experiment(folder, STUDY)
    for name, trial in TRIALS.items():
        if name == RESUMED:
            with TensorBoardReporter(folder, trial.resolved, trial.params) as reporter:
                _report_epochs(reporter, trial, 2, val_accuracy=0.0)
                reporter.report(_epoch(trial, "regulation", 3, val_accuracy=1.0))  # which no checkpoint holds
        with TensorBoardReporter(folder, trial.resolved, trial.params) as reporter:
            stage: Stage
            for stage in ("pretraining", "regulation"):
                images = torch.randint(0, 256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
                images = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
                reporter.report(ImagesSample(stage=stage, images=images, captions=(CLASSES * 2)[:12]))
            _report_epochs(reporter, trial, trial.epochs - 1)
            if trial.epochs:
                values = {"train_loss": math.nan, "val_loss": math.inf} if name == "diverged" else {}
                reporter.report(_epoch(trial, "regulation", trial.epochs, **values))
            if trial.config.regulation.kind == "dynamic":
                for epoch in range(1, trial.epochs + 1):
                    spread = torch.rand(200, generator=generator) * epoch / EPOCHS
                    reporter.report(BalanceSample(epoch=epoch, balance=spread))
            if trial.status == "finished":
                counts = torch.randint(0, 30, (10, 10), generator=generator) + 400 * torch.eye(10, dtype=torch.int64)
                reporter.report(Confusion(split="validation", counts=counts, class_names=CLASSES))
        if trial.status is not None:
            finish(
                folder, ended(trial.config, params=trial.params, status=trial.status, message=trial.message, seconds=SECONDS)
            )


def _report_epochs(reporter: TensorBoardReporter, trial: Trial, regulation: int, **values: Any) -> None:
    """All epochs of pre-training, and the first ones of regulation."""
    for epoch in range(1, trial.resolved.config.pretraining.epochs + 1):
        reporter.report(_epoch(trial, "pretraining", epoch))
    for epoch in range(1, regulation + 1):
        reporter.report(_epoch(trial, "regulation", epoch, **values))


def _read_all(server: Server) -> bool:
    """Whether TensorBoard has come to the last value of each run."""
    tags = server.json("data/plugin/scalars/tags")
    last = {None: "regulation/measured_balance"}
    if any(last.get(trial.status, "trial/outcome") not in tags.get(_identity(name), ()) for name, trial in TRIALS.items()):
        return False
    running = server.scalars(_identity("running"), "regulation/measured_balance")
    experiment = server.post("data/plugin/hparams/experiment", {"experimentName": ""})
    return len(running) == TRIALS["running"].epochs and "description" in experiment


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with seconds_apart():
        write_study(folder)
    return folder


@pytest.fixture(scope="module", params=["data server", "python reader"])
def reader(request: pytest.FixtureRequest) -> str:
    """The option for each of TensorBoard's two ways to read event files."""
    if request.param == "data server":
        pytest.importorskip("tensorboard_data_server", reason="no data server for this platform")
    return f"--load_fast={'true' if request.param == 'data server' else 'false'}"


@pytest.fixture(scope="module")
def study(reader: str, written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that the server reads: a copy, to which a trial is added in the end."""
    return Path(shutil.copytree(written, tmp_path_factory.mktemp("study") / "synthetic"))


@pytest.fixture(scope="module")
def server(reader: str, study: Path) -> Iterator[Server]:
    with tensorboard(study / "events", reader, "--reload_interval=1") as started:
        wait_for(lambda: _read_all(started), told=lambda: "every run to its end", pause=0.2)
        yield started


def _identity(name: str) -> str:
    return TRIALS[name].resolved.identity


def _groups(server: Server) -> dict[str, Any]:
    names = {_identity(name): name for name in TRIALS}
    return {names[identity]: group for identity, group in server.session_groups().items()}


def test_a_trial_is_one_run(server: Server) -> None:
    assert set(server.json("data/runs")) == {".", *map(_identity, TRIALS)}


def test_scalars_of_both_stages(server: Server) -> None:
    tags = server.json("data/plugin/scalars/tags")
    assert {"pretraining/train_loss", "regulation/val_accuracy", "trial/device_seconds"} <= set(tags[_identity("best")])
    assert not any(tag.startswith("regulation/") for tag in tags[_identity("failed")])
    values = server.scalars(_identity("best"), "regulation/val_accuracy")
    assert values == [(epoch, _accuracy(TRIALS["best"], epoch)) for epoch in range(1, EPOCHS + 1)]


def test_a_resumed_trial_draws_one_line(server: Server) -> None:
    values = server.scalars(_identity(RESUMED), "regulation/val_accuracy")
    assert values == [(epoch, _accuracy(TRIALS[RESUMED], epoch)) for epoch in range(1, EPOCHS + 1)]
    before = server.scalars(_identity(RESUMED), "pretraining/train_loss")
    assert [step for step, _ in before] == list(range(1, 9))


def test_losses_that_are_not_finite_are_served(server: Server) -> None:
    assert server.scalars(_identity("diverged"), "regulation/train_loss") == [(1, "NaN")]


def test_hparams_have_a_row_a_trial_with_status_and_metrics(server: Server) -> None:
    groups = _groups(server)
    assert set(groups) == set(TRIALS)
    assert all(len(group["sessions"]) == 1 for group in groups.values())
    assert {name: group["sessions"][0].get("status", "STATUS_UNKNOWN") for name, group in groups.items()} == {
        "best": "STATUS_SUCCESS",
        "good": "STATUS_SUCCESS",
        "plain": "STATUS_SUCCESS",
        "pruned": "STATUS_UNKNOWN",
        "diverged": "STATUS_UNKNOWN",
        "running": "STATUS_UNKNOWN",
        "failed": "STATUS_FAILURE",
    }
    outcomes = {name: metrics_of(group).get("trial/outcome") for name, group in groups.items()}
    expected = {None: None, "finished": 1, "pruned": 0, "failed": -1}
    assert outcomes == {name: expected[trial.status] for name, trial in TRIALS.items()}
    for name, trial in TRIALS.items():
        metrics = metrics_of(groups[name])
        if trial.epochs > 0:
            assert metrics["regulation/val_accuracy"] == _accuracy(trial, trial.epochs)
            assert ("regulation/val_loss" in metrics) == (name != "diverged"), "only finite metrics: the page breaks on others"
        if trial.status is not None:
            assert metrics["trial/device_seconds"] == (SECONDS if trial.status == "finished" else 0.0)
        shown = groups[name]["hparams"]
        assert shown["regulation.balance"] == trial.resolved.config.regulation.balance
        assert {path: shown[path] for path in trial.params} == trial.params


def test_hparams_have_the_columns_of_the_study(server: Server) -> None:
    experiment = server.post("data/plugin/hparams/experiment", {"experimentName": ""})
    columns = [info["name"] for info in experiment["hparamInfos"]]
    differing = {*STUDY.search_space, "control"}
    assert set(columns[: len(differing)]) == differing
    assert set(columns[len(differing) :]) == {"backbone", "seed", "regulation.form"}
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == list(METRICS)
    assert [info["displayName"] for info in experiment["metricInfos"]] == list(METRICS.values())


def test_images_decode_and_histograms_and_texts_are_there(server: Server) -> None:
    tags = server.json("data/plugin/images/tags")
    assert set(tags[_identity("best")]) == {"samples/pretraining", "samples/regulation", "trial/confusion_validation"}
    for tag in tags[_identity("best")]:
        (entry,) = server.json("data/plugin/images/images", run=_identity("best"), tag=tag, sample="0")
        query = dict(urllib.parse.parse_qsl(entry["query"]))
        picture = Image.open(io.BytesIO(server.get("data/plugin/images/individualImage", **query)))
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    histograms = {run: set(tags) for run, tags in server.json("data/plugin/histograms/tags").items() if tags}
    assert histograms == {_identity("best"): {"regulation/balance_by_image"}}
    values = server.json("data/plugin/histograms/histograms", run=_identity("best"), tag="regulation/balance_by_image")
    assert [step for _, step, _ in values] == list(range(1, EPOCHS + 1))
    (text,) = server.json("data/plugin/text/text", run=_identity("pruned"), tag="trial/status/text_summary")
    assert "pruned: stopped by asha" in text["text"]


@needs_chromium
@pytest.mark.slow
def test_the_hparams_page_is_drawn_without_errors(server: Server) -> None:
    with opened(f"{server.address}/#hparams", width=1600, height=1000) as found:
        expect(found.page.get_by_text("validation accuracy").first).to_be_visible()
        expect(found.page.get_by_text(_identity("best")).first).to_be_visible()
    assert found.errors == []


def test_a_running_trial_is_seen_to_begin_to_go_on_and_to_end(server: Server, study: Path) -> None:
    """It comes last in this file: the run that it adds stays on the server."""
    trial = LATE

    def shown(metric: str) -> Any:
        group = server.session_groups().get(trial.resolved.identity)
        return None if group is None else metrics_of(group).get(metric)

    assert trial.resolved.identity not in server.session_groups()
    with TensorBoardReporter(study, trial.resolved, trial.params) as reporter:
        reporter.report(_epoch(trial, "regulation", 1))
        wait_for(lambda: shown("regulation/val_accuracy") == _accuracy(trial, 1), told=lambda: "the first epoch", pause=0.2)
        assert shown("trial/outcome") is None
        reporter.report(_epoch(trial, "regulation", 2))
        wait_for(lambda: shown("regulation/val_accuracy") == _accuracy(trial, 2), told=lambda: "the second epoch", pause=0.2)
        finish(study, ended(trial.config, params=trial.params, status="failed", message="the node died"))
        wait_for(lambda: shown("trial/outcome") == -1, told=lambda: "the end", pause=0.2)
    assert server.session_groups()[trial.resolved.identity]["sessions"][0]["status"] == "STATUS_FAILURE"
