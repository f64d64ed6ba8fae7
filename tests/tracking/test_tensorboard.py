from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as PlainAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from emoreg.config import Choice, Float, Int, PretrainingConfig, RegulationConfig, StudyConfig, TrialConfig, Value
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.results.outcome import Status
from emoreg.results.records import EpochRecord, ProbeRecord, Stage
from emoreg.tracking.tensorboard import COMPARED, METRICS, TensorBoardReporter, finish, write_experiment
from emoreg.training.events import BalanceSample, Confusion, ImagesSample
from tests.helpers.studies import ended
from tests.helpers.tensorboard import read, seconds_apart, series, session_end, session_start

CONFIG = TrialConfig(
    pretraining=PretrainingConfig(epochs=3), regulation=RegulationConfig(kind="dynamic", balance=0.25, epochs=3), seed=4
)
TRIAL = resolve_trial(CONFIG)
PARAMS: dict[str, Value] = {"regulation.balance": 0.25, "regulation.optimizer.learning_rate": 0.001, "pretraining.epochs": 3}


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    with seconds_apart():
        yield


def epoch(number: int, stage: Stage = "regulation", **values: Any) -> EpochRecord:
    is_regulation = stage == "regulation"
    row = EpochRecord(
        identity=TRIAL.identity,
        stage=stage,
        epoch=number,
        step=10 * number,
        train_loss=2.0 / number,
        train_accuracy=0.25,
        val_loss=2.5 / number if is_regulation else None,
        val_accuracy=number / 8 if is_regulation else None,
        learning_rate=0.5,
        images_per_second=1000.0,
        seconds=1.5,
        measured_balance=0.25 if is_regulation else None,
        measured_balance_std=0.125 if is_regulation else None,
    )
    return dataclasses.replace(row, **values)


def run_of(folder: Path, trial: ResolvedTrial = TRIAL) -> Path:
    return folder / "events" / trial.identity


def test_epochs_become_scalars_of_both_stages(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        for number in (1, 2, 3):
            reporter.report(epoch(number, "pretraining"))
        for number in (1, 2):
            reporter.report(epoch(number))
    run = run_of(tmp_path)
    assert series(run, "pretraining/train_loss") == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert series(run, "regulation/val_accuracy") == [(1, 0.125), (2, 0.25)]
    assert series(run, "regulation/measured_balance_std") == [(1, 0.125), (2, 0.125)]
    common = {"train_loss", "train_accuracy", "learning_rate", "images_per_second"}
    regulation = common | {"val_loss", "val_accuracy", "measured_balance", "measured_balance_std"}
    scalars = {f"pretraining/{name}" for name in common} | {f"regulation/{name}" for name in regulation}
    assert set(read(run).Tags()["tensors"]) == scalars | {metadata.SESSION_START_INFO_TAG}


def test_registered_metrics_and_probes_become_scalars(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        for number in (1, 2):
            reporter.report(epoch(number, metrics=json.dumps({"val_f1": number / 4})))
            probe = {"probe": "knn", "name": "accuracy", "value": number / 8}
            reporter.report(ProbeRecord(identity=TRIAL.identity, stage="regulation", epoch=number, **probe))  # type: ignore[arg-type]
        reporter.report(epoch(3, metrics=json.dumps({"val_f1": math.nan})))
    assert series(run_of(tmp_path), "regulation/val_f1") == [(1, 0.25), (2, 0.5)], "the HParams page breaks on NaN"
    assert series(run_of(tmp_path), "probes/regulation/knn/accuracy") == [(1, 0.125), (2, 0.25)]


def test_the_spread_of_the_balance_is_shown_where_it_depends_on_the_image(tmp_path: Path) -> None:
    trial = resolve_trial(dataclasses.replace(CONFIG, regulation=RegulationConfig(kind="fixed")))
    with TensorBoardReporter(tmp_path, trial, {}) as reporter:
        reporter.report(epoch(1, measured_balance_std=0.0))
    tags = read(run_of(tmp_path, trial)).Tags()["tensors"]
    assert "regulation/measured_balance" in tags
    assert "regulation/measured_balance_std" not in tags


def test_an_epoch_is_on_disk_when_report_returns(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        for number in (1, 2):
            reporter.report(epoch(number))
            assert len(series(run_of(tmp_path), "regulation/train_loss")) == number


def test_a_trial_has_one_run_and_its_hparams_from_the_start(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS):
        start = session_start(run_of(tmp_path))
    finish(tmp_path, ended(CONFIG, params=PARAMS))
    assert [path for path in (tmp_path / "events").rglob("*") if path.is_dir()] == [run_of(tmp_path)]
    assert start.group_name == TRIAL.identity
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()} == {
        "backbone": "resnet18",
        "control": "regulated",
        "regulation.balance": 0.25,
        "pretraining.epochs": 3.0,
        "seed": 4.0,
        "regulation.kind": "dynamic",
        "regulation.form": "output",
        "regulation.optimizer.learning_rate": 0.001,
    }


def test_a_control_shows_what_is_run(tmp_path: Path) -> None:
    trial = resolve_trial(dataclasses.replace(CONFIG, control="plain"))
    TensorBoardReporter(tmp_path, trial, {}).close()
    hparams = session_start(run_of(tmp_path, trial)).hparams
    assert hparams["control"].string_value == "plain"
    assert hparams["regulation.balance"].number_value == 0.0
    assert hparams["pretraining.epochs"].number_value == 0.0
    assert "regulation.optimizer.learning_rate" not in hparams, "what was not sampled for it is absent"


@pytest.mark.parametrize(
    ("status", "message", "shown", "outcome"),
    [
        ("finished", None, api_pb2.STATUS_SUCCESS, 1.0),
        ("pruned", "stopped by asha", api_pb2.STATUS_UNKNOWN, 0.0),
        ("failed", "out of memory", api_pb2.STATUS_FAILURE, -1.0),
    ],
)
def test_finish_tells_how_a_trial_ended(
    tmp_path: Path, status: Status, message: str | None, shown: int, outcome: float
) -> None:
    run = run_of(tmp_path)
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        reporter.report(epoch(1))
        assert session_end(run) is None
    record = ended(CONFIG, params=PARAMS, status=status, message=message)
    finish(tmp_path, dataclasses.replace(record, ended="2026-11-21T10:05:00+00:00", device_seconds=6.5))
    assert (session_end(run).status, session_end(run).end_time_secs) == (shown, 1795255500.0)
    assert series(run, "trial/outcome") == [(0, outcome)]
    assert series(run, "trial/device_seconds") == [(0, 6.5)]
    assert series(run, "regulation/train_loss") == [(1, 2.0)]
    (text,) = read(run).Tensors("trial/status/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (status if message is None else f"{status}: {message}")


def test_a_trial_that_failed_before_it_reported_has_a_run(tmp_path: Path) -> None:
    finish(tmp_path, ended(CONFIG, params=PARAMS, status="failed", message="the worker died"))
    assert set(session_start(run_of(tmp_path)).hparams) == set(COMPARED) | set(PARAMS)
    assert session_end(run_of(tmp_path)).status == api_pb2.STATUS_FAILURE


def test_finishing_twice_equals_finishing_once(tmp_path: Path) -> None:
    TensorBoardReporter(tmp_path, TRIAL, PARAMS).close()
    for _ in range(2):
        finish(tmp_path, ended(CONFIG, params=PARAMS))
    assert len(list(run_of(tmp_path).iterdir())) == 2
    assert series(run_of(tmp_path), "trial/outcome") == [(0, 1.0)]


def test_a_failed_trial_that_runs_again_ends_as_it_does_then(tmp_path: Path) -> None:
    TensorBoardReporter(tmp_path, TRIAL, PARAMS).close()
    finish(tmp_path, ended(CONFIG, params=PARAMS, status="failed", message="the node died"))
    TensorBoardReporter(tmp_path, TRIAL, PARAMS).close()
    assert session_end(run_of(tmp_path)) is None
    finish(tmp_path, ended(CONFIG, params=PARAMS))
    assert session_end(run_of(tmp_path)).status == api_pb2.STATUS_SUCCESS
    assert series(run_of(tmp_path), "trial/outcome") == [(0, 1.0)]


@pytest.mark.parametrize("resumed_after", [0, 1, 2])
def test_a_resumed_trial_draws_one_line(tmp_path: Path, resumed_after: int) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        for number in (1, 2, 3):
            reporter.report(epoch(number, "pretraining"))
        for number in (1, 2, 3):
            reporter.report(epoch(number, train_loss=100.0))
    first = resumed_after + 1
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:  # it reports first what it had saved
        for number in (1, 2, 3):
            reporter.report(epoch(number, "pretraining"))
        for number in range(1, first):
            reporter.report(epoch(number, train_loss=100.0))
        reporter.report(epoch(first, train_loss=50.0))
    kept = [(number, 100.0) for number in range(1, first)]
    assert series(run_of(tmp_path), "regulation/train_loss") == [*kept, (first, 50.0)]
    assert [step for step, _ in series(run_of(tmp_path), "pretraining/train_loss")] == [1, 2, 3]


def test_every_attempt_replaces_those_before(tmp_path: Path) -> None:
    for attempt in range(1, 13):
        with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
            reporter.report(epoch(1, train_loss=float(attempt)))
    assert series(run_of(tmp_path), "regulation/train_loss") == [(1, 12.0)]


def test_values_that_are_not_finite_are_marked_except_in_hparams_metrics(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        reporter.report(epoch(1))
        reporter.report(epoch(2, train_loss=math.nan, val_loss=math.inf))
    assert math.isnan(series(run_of(tmp_path), "regulation/train_loss")[1][1])
    assert series(run_of(tmp_path), "regulation/val_loss") == [(1, 2.5)]


def test_the_finite_balances_of_the_images_become_a_histogram(tmp_path: Path) -> None:
    balance = torch.cat([torch.full((30,), 0.25), torch.full((10,), 0.75), torch.tensor([math.nan, math.inf])])
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        reporter.report(BalanceSample(epoch=2, balance=balance))
        reporter.report(BalanceSample(epoch=3, balance=torch.full((4,), math.nan)))
    (event,) = read(run_of(tmp_path)).Tensors("regulation/balance_by_image")
    buckets = tensor_util.make_ndarray(event.tensor_proto)
    filled = buckets[buckets[:, 2] > 0]
    assert event.step == 2
    assert filled[:, 2].tolist() == [30, 10]
    assert filled[:, :2].ravel() == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.02)


def test_images_decode(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, TRIAL, PARAMS) as reporter:
        stage: Stage
        for stage in ("pretraining", "regulation"):
            images = torch.full((4, 3, 16, 16), 9, dtype=torch.uint8)
            reporter.report(ImagesSample(stage=stage, images=images, captions=("a",) * 4))
        reporter.report(epoch(3))
        reporter.report(Confusion(split="validation", counts=torch.eye(3, dtype=torch.int64), class_names=("a", "b", "c")))
    accumulator = PlainAccumulator(str(run_of(tmp_path)))
    accumulator.Reload()
    tags = {"samples/pretraining": 0, "samples/regulation": 0, "trial/confusion_validation": 3}
    assert set(accumulator.Tags()["images"]) == set(tags)
    for tag, step in tags.items():
        (image,) = accumulator.Images(tag)
        assert image.step == step
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)


def test_the_experiment_has_columns_for_the_search_and_the_controls(tmp_path: Path) -> None:
    study = StudyConfig(
        search_space={
            "regulation.balance": Float(0.2, 0.8),
            "pretraining.epochs": Int(1, 20),
            "regulation.batch_size": Choice((64, 128)),
            "regulation.freeze_emotional": Choice((False, True)),
        },
        control_seeds=(3, 5),
    )
    for _ in range(2):
        write_experiment(tmp_path, study)
    (path,) = (tmp_path / "events").iterdir()
    content = read(path).PluginTagToContent(metadata.PLUGIN_NAME)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == set(COMPARED) | set(study.search_space)
    balance = infos["regulation.balance"].domain_interval
    assert (balance.min_value, balance.max_value) == (0.0, 1.0), "the controls plain and emotional lie outside the search"
    assert list(infos["regulation.batch_size"].domain_discrete) == [64, 128]
    assert infos["regulation.freeze_emotional"].type == api_pb2.DATA_TYPE_BOOL
    assert infos["control"].type == api_pb2.DATA_TYPE_STRING
    assert set(infos["control"].domain_discrete) == {"regulated", *study.controls}
    constant = {"backbone", "seed", "regulation.form", "regulation.kind"}
    assert {name for name, info in infos.items() if not info.differs} == constant
    assert (infos["seed"].domain_interval.min_value, infos["seed"].domain_interval.max_value) == (0, 5)
    assert [metric.name.tag for metric in experiment.metric_infos] == list(METRICS)
