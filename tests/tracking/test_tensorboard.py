from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as PlainAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from emoreg.config import Choice, Float, Int, PretrainingConfig, RegulationConfig, StudyConfig, TrialConfig, Value
from emoreg.results.records import EpochRecord, Stage, Status, TrialRecord
from emoreg.tracking.tensorboard import (
    COMPARED,
    METRICS,
    TensorBoardReporter,
    confusion_matrix,
    contact_sheet,
    finish,
    write_experiment,
)
from emoreg.training.events import BalanceSample, Confusion, Experienced, ImagesSample

CONFIG = TrialConfig(
    pretraining=PretrainingConfig(epochs=3), regulation=RegulationConfig(kind="dynamic", balance=0.25, epochs=3), seed=4
)
PARAMS: dict[str, Value] = {"regulation.balance": 0.25, "regulation.optimizer.learning_rate": 0.001, "pretraining.epochs": 3}


def epoch(number: int, stage: Stage = "regulation", **values: Any) -> EpochRecord:
    row = EpochRecord(
        identity=CONFIG.identity,
        stage=stage,
        epoch=number,
        step=10 * number,
        loss=2.0 / number,
        accuracy=0.25,
        val_loss=2.5 / number if stage == "regulation" else None,
        val_accuracy=number / 8 if stage == "regulation" else None,
        learning_rate=0.5,
        images_per_second=1000.0,
        seconds=1.5,
        balance=0.25 if stage == "regulation" else None,
        balance_std=0.125 if stage == "regulation" else None,
    )
    return dataclasses.replace(row, **values)


def ended(config: TrialConfig, params: dict[str, Value], status: Status, reason: str | None = None) -> TrialRecord:
    return TrialRecord(
        identity=config.identity,
        role="search",
        number=0,
        control=config.control,
        status=status,
        reason=reason,
        seed=config.seed,
        backbone=config.backbone,
        stimuli=config.stimuli.name,
        task=config.task.name,
        form=config.regulation.form,
        kind=config.regulation.kind,
        balance=config.regulation.balance,
        pretraining_epochs=config.pretraining.epochs,
        params=json.dumps(params),
        config=json.dumps(dataclasses.asdict(config.applied())),
        accuracy=0.375 if status == "finished" else None,
        loss=0.75 if status == "finished" else None,
        measured_balance=0.25,
        test_accuracy=None,
        regulation_epochs=3,
        num_parameters=1000,
        pretraining_seconds=2.0,
        experience_seconds=0.0,
        regulation_seconds=4.5,
        waiting_seconds=0.0,
        device_seconds=6.5,
        micro_batch_size=None,
        recomputed=False,
        attempts=1,
        log_tail=None,
        device="cpu",
        started="2026-11-21T10:00:00+00:00",
        ended="2026-11-21T10:05:00+00:00",
    )


def read(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), tensor_size_guidance={})
    accumulator.Reload()
    return accumulator


def run_of(folder: Path, config: TrialConfig = CONFIG) -> Path:
    return folder / "events" / config.identity


def series(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in read(run).Tensors(tag)]


def session_end(run: Path) -> Any:
    content = read(run).PluginTagToContent(metadata.PLUGIN_NAME)
    return metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])


def test_epochs_become_scalars_of_both_stages(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        for number in (1, 2, 3):
            reporter.report(epoch(number, "pretraining"))
        reporter.report(Experienced(epochs=2, paid_seconds=1.0, cost_seconds=1.0, waiting_seconds=0.0))
        for number in (1, 2):
            reporter.report(epoch(number))
    run = run_of(tmp_path)
    assert series(run, "pretraining/loss") == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert series(run, "regulation/val_accuracy") == [(1, 0.125), (2, 0.25)]
    assert series(run, "regulation/balance_std") == [(1, 0.125), (2, 0.125)]
    tags = read(run).Tags()["tensors"]
    common = {"loss", "accuracy", "learning_rate", "images_per_second"}
    regulation = common | {"val_loss", "val_accuracy", "balance", "balance_std"}
    scalars = {f"pretraining/{name}" for name in common} | {f"regulation/{name}" for name in regulation}
    assert set(tags) == scalars | {metadata.SESSION_START_INFO_TAG}


def test_the_spread_of_the_balance_is_shown_where_it_depends_on_the_image(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, regulation=RegulationConfig(kind="fixed"))
    with TensorBoardReporter(tmp_path, config, {}) as reporter:
        reporter.report(epoch(1, balance_std=0.0))
    tags = read(run_of(tmp_path, config)).Tags()["tensors"]
    assert "regulation/balance" in tags
    assert "regulation/balance_std" not in tags


def test_an_epoch_is_on_disk_when_report_returns(tmp_path: Path) -> None:
    reporter = TensorBoardReporter(tmp_path, CONFIG, PARAMS)
    reporter.report(epoch(1))
    assert series(run_of(tmp_path), "regulation/loss") == [(1, 2.0)]
    reporter.close()


def test_a_trial_has_one_run_and_its_hparams_from_the_start(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS):
        pass
    finish(tmp_path, ended(CONFIG, PARAMS, "finished"))
    assert [path for path in (tmp_path / "events").rglob("*") if path.is_dir()] == [run_of(tmp_path)]
    content = read(run_of(tmp_path)).PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == CONFIG.identity
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {
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
    config = dataclasses.replace(CONFIG, control="plain")
    TensorBoardReporter(tmp_path, config, {}).close()
    content = read(run_of(tmp_path, config)).PluginTagToContent(metadata.PLUGIN_NAME)
    hparams = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    assert hparams["control"].string_value == "plain"
    assert hparams["regulation.balance"].number_value == 0.0
    assert hparams["pretraining.epochs"].number_value == 0.0


@pytest.mark.parametrize(
    ("status", "reason", "shown", "outcome"),
    [
        ("finished", None, api_pb2.STATUS_SUCCESS, 1.0),
        ("pruned", "stopped by asha", api_pb2.STATUS_UNKNOWN, 0.0),
        ("failed", "out of memory", api_pb2.STATUS_FAILURE, -1.0),
    ],
)
def test_finish_tells_how_a_trial_ended(tmp_path: Path, status: Status, reason: str | None, shown: int, outcome: float) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        reporter.report(epoch(1))
        assert metadata.SESSION_END_INFO_TAG not in read(run_of(tmp_path)).PluginTagToContent(metadata.PLUGIN_NAME)
    finish(tmp_path, ended(CONFIG, PARAMS, status, reason))
    run = run_of(tmp_path)
    assert session_end(run).status == shown
    assert session_end(run).end_time_secs == 1795255500.0
    assert series(run, "trial/outcome") == [(0, outcome)]
    assert series(run, "trial/device_seconds") == [(0, 6.5)]
    (text,) = read(run).Tensors("trial/status")
    assert text.tensor_proto.string_val[0].decode() == (status if reason is None else f"{status}: {reason}")


def test_a_trial_that_failed_before_it_reported_has_a_run(tmp_path: Path) -> None:
    finish(tmp_path, ended(CONFIG, PARAMS, "failed", "the worker died"))
    content = read(run_of(tmp_path)).PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert set(start.hparams) == set(COMPARED) | set(PARAMS)
    assert session_end(run_of(tmp_path)).status == api_pb2.STATUS_FAILURE


def test_finishing_twice_equals_finishing_once(tmp_path: Path) -> None:
    TensorBoardReporter(tmp_path, CONFIG, PARAMS).close()
    for _ in range(2):
        finish(tmp_path, ended(CONFIG, PARAMS, "finished"))
    assert len(list(run_of(tmp_path).iterdir())) == 2
    assert series(run_of(tmp_path), "trial/outcome") == [(0, 1.0)]


def test_a_failed_trial_that_runs_again_ends_as_it_does_then(tmp_path: Path) -> None:
    TensorBoardReporter(tmp_path, CONFIG, PARAMS).close()
    finish(tmp_path, ended(CONFIG, PARAMS, "failed", "the node died"))
    TensorBoardReporter(tmp_path, CONFIG, PARAMS).close()
    assert metadata.SESSION_END_INFO_TAG not in read(run_of(tmp_path)).PluginTagToContent(metadata.PLUGIN_NAME)
    finish(tmp_path, ended(CONFIG, PARAMS, "finished"))
    assert session_end(run_of(tmp_path)).status == api_pb2.STATUS_SUCCESS


@pytest.mark.parametrize("resumed_after", [0, 1, 2])
def test_a_resumed_trial_draws_one_line(tmp_path: Path, resumed_after: int) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        for number in (1, 2, 3):
            reporter.report(epoch(number, "pretraining"))
        for number in (1, 2, 3):
            reporter.report(epoch(number, loss=100.0))
            reporter.report(BalanceSample(epoch=number, balance=torch.zeros(8)))
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        first = resumed_after + 1
        reporter.report(epoch(first, loss=50.0))
        reporter.report(BalanceSample(epoch=first, balance=torch.ones(8)))
    run = run_of(tmp_path)
    kept = [(number, 100.0) for number in range(1, first)]
    assert series(run, "regulation/loss") == [*kept, (first, 50.0)]
    assert [event.step for event in read(run).Tensors("regulation/balance_by_image")] == list(range(1, first + 1))
    assert [step for step, _ in series(run, "pretraining/loss")] == [1, 2, 3]


def test_attempts_are_read_in_their_order_past_nine(tmp_path: Path) -> None:
    for attempt in range(1, 13):
        with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
            reporter.report(epoch(1, loss=float(attempt)))
    assert series(run_of(tmp_path), "regulation/loss") == [(1, 12.0)]


def test_values_that_are_not_finite_are_marked_except_in_hparams_metrics(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        reporter.report(epoch(1))
        reporter.report(epoch(2, loss=math.nan, val_loss=math.inf))
    run = run_of(tmp_path)
    assert math.isnan(series(run, "regulation/loss")[1][1])
    assert series(run, "regulation/val_loss") == [(1, 2.5)]


def test_balances_that_are_not_finite_are_left_out_of_the_histogram(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        reporter.report(BalanceSample(epoch=1, balance=torch.tensor([math.nan, 0.5, math.inf, 0.75])))
        reporter.report(BalanceSample(epoch=2, balance=torch.full((4,), math.nan)))
    events = read(run_of(tmp_path)).Tensors("regulation/balance_by_image")
    assert [tensor_util.make_ndarray(event.tensor_proto)[:, 2].sum() for event in events] == [2, 0]


def test_the_balance_of_each_image_becomes_a_histogram(tmp_path: Path) -> None:
    balance = torch.cat([torch.full((30,), 0.25), torch.full((10,), 0.75)])
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        reporter.report(BalanceSample(epoch=2, balance=balance))
    (event,) = read(run_of(tmp_path)).Tensors("regulation/balance_by_image")
    buckets = tensor_util.make_ndarray(event.tensor_proto)
    assert event.step == 2
    assert (buckets[0, 0], buckets[-1, 1]) == (0.25, 0.75)
    assert (buckets[0, 2], buckets[-1, 2], buckets[:, 2].sum()) == (30, 10, 40)


def test_images_decode(tmp_path: Path) -> None:
    with TensorBoardReporter(tmp_path, CONFIG, PARAMS) as reporter:
        for stage in ("pretraining", "regulation"):
            reporter.report(
                ImagesSample(stage=stage, images=torch.full((4, 3, 16, 16), 9, dtype=torch.uint8), captions=("a",) * 4)
            )
        reporter.report(epoch(3))
        reporter.report(Confusion(split="validation", counts=torch.eye(3, dtype=torch.int64), class_names=("a", "b", "c")))
    accumulator = PlainAccumulator(str(run_of(tmp_path)))
    accumulator.Reload()
    assert set(accumulator.Tags()["images"]) == {
        "samples/pretraining",
        "samples/regulation",
        "trial/confusion_validation",
    }
    (sheet,) = accumulator.Images("samples/pretraining")
    picture = Image.open(io.BytesIO(sheet.encoded_image_string))
    assert picture.size == (sheet.width, sheet.height)
    (confusion,) = accumulator.Images("trial/confusion_validation")
    assert confusion.step == 3


def test_a_contact_sheet_enlarges_pixels_without_smoothing() -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(contact_sheet(images, ("zero", "one", "two", "three", "a name that is much too long to be drawn")))
    first = sheet[8 : 8 + 64, 8 : 8 + 64]
    assert (first == images[0].permute(1, 2, 0).numpy().repeat(4, axis=0).repeat(4, axis=1)).all()
    caption = sheet[8 + 64 : 8 + 64 + 16, 8 : 8 + 64]
    assert caption.min() < 100, "the caption is drawn"


def test_a_contact_sheet_keeps_large_images_as_they_are() -> None:
    assert contact_sheet(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), ("x",)).size == (144, 160)


def test_a_confusion_matrix_shades_by_the_share_of_the_row() -> None:
    counts = torch.tensor([[90, 10], [0, 0]])
    picture = confusion_matrix(counts, ("cat", "dog"))
    left = picture.width - 10 - 2 * 26
    corners = [[picture.getpixel((left + 26 * column + 3, left + 26 * row + 3)) for column in (0, 1)] for row in (0, 1)]
    assert corners[0][0] == (33, 69, 122)
    assert corners[0][1] == (230, 234, 240)
    assert corners[1] == [(255, 255, 255)] * 2, "a class without images is blank, not a division by zero"


@pytest.mark.parametrize("num_classes", [1, 10, 100, 1000])
def test_a_confusion_matrix_stays_of_a_size_to_look_at(num_classes: int) -> None:
    counts = torch.ones(num_classes, num_classes, dtype=torch.int64)
    picture = confusion_matrix(counts, tuple(f"class {index}" for index in range(num_classes)))
    assert max(picture.size) <= 1900


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
    assert list(infos["control"].domain_discrete) == [
        "emotional", "regulated", "plain", "shuffled", "untrained",
    ]  # fmt: skip
    assert {name for name, info in infos.items() if not info.differs} == {
        "backbone",
        "seed",
        "regulation.form",
        "regulation.kind",
    }
    assert (infos["seed"].domain_interval.min_value, infos["seed"].domain_interval.max_value) == (0, 5)
    assert [metric.name.tag for metric in experiment.metric_infos] == list(METRICS)
