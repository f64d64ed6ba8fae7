from __future__ import annotations

import dataclasses
import io
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.util import tensor_util

from emoreg.formatting import control_name
from emoreg.results.analysis import best_by_backbone
from emoreg.results.confirmation import read_looks
from emoreg.results.records import Records, TrialRecord
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.tracking.study_board import RUN, StudyBoard, draw_curves
from tests.helpers.written import made_up_config, write_study
from tests.test_tensorboard import read, series

CONFIG = made_up_config(num_trials=20, control_seeds=(0, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path, CONFIG, num_seeds=0)


def own(folder: Path, control: str = "") -> Path:
    return folder / "events" / RUN / control


def pictures(run: EventAccumulator, tag: str) -> list[tuple[int, Image.Image]]:
    """Steps and pictures of a tag: TensorBoard holds width, height and the picture."""
    found = []
    for event in run.Tensors(tag):
        content = tensor_util.make_ndarray(event.tensor_proto)[2]
        found.append((event.step, Image.open(io.BytesIO(content))))
    return found


def test_how_the_study_goes_on(folder: Path) -> None:
    records = Records(folder)
    rows = sorted(records.trials.values(), key=lambda row: row.ended)
    later = {row.identity: records.trials.pop(row.identity) for row in rows[-2:]}
    board = StudyBoard(folder, CONFIG, records, 1)
    for row in later.values():
        records.trials[row.identity] = row
        board.ended(row, running=1, slots=2, gpu_utilisation=0.75)
    board.end(draw=False)
    best = series(own(folder), "study/best_accuracy")
    assert [step for step, _ in best] == list(range(best[0][0], len(rows) + 1))
    assert [value for _, value in best] == sorted(value for _, value in best)
    overall = max(row.accuracy or 0.0 for row in best_by_backbone(rows, CONFIG.objectives[0]).values())
    assert best[-1][1] == pytest.approx(overall)
    for status in ("finished", "pruned", "failed"):
        counts = series(own(folder), f"study/trials_{status}")
        assert counts[-1] == (len(rows), sum(row.status == status for row in rows))
    steps = [len(rows) - 1, len(rows)]
    assert series(own(folder), "study/trials_running") == [(step, 1.0) for step in steps]
    assert series(own(folder), "study/slots_in_use") == [(step, 0.5) for step in steps]
    assert series(own(folder), "study/gpu_utilisation") == [(step, 0.75) for step in steps]
    assert series(own(folder), "study/waiting_share") == [(step, pytest.approx(0.05 / 1.1)) for step in steps]


def test_without_a_gpu_there_is_no_such_curve(folder: Path) -> None:
    records = Records(folder)
    board = StudyBoard(folder, CONFIG, records, 1)
    board.ended(next(iter(records.trials.values())), running=1, slots=1, gpu_utilisation=None)
    board.end(draw=False)
    assert "study/gpu_utilisation" not in read(own(folder)).Tags()["tensors"]


def mean_curve(records: Records, backbone: str, control: str) -> list[tuple[int, float]]:
    def is_its(row: TrialRecord) -> bool:
        return (row.role, row.backbone, row.control, row.status) == ("control", backbone, control, "finished")

    curves = [records.epochs_of(row.identity) for row in records.trials.values() if is_its(row)]
    curves = [[row for row in curve if row.stage == "regulation"] for curve in curves]
    return [
        (rows[0].epoch, pytest.approx(sum(row.val_accuracy or 0.0 for row in rows) / len(rows)))
        for rows in zip(*curves, strict=True)
    ]


def test_regulation_and_each_control_are_runs_that_share_a_chart(folder: Path) -> None:
    records = Records(folder)
    StudyBoard(folder, CONFIG, records, 1).end(draw=False)
    for control, name in (("regulated", "regulation"), ("plain", "plain"), ("neutral", "neutral")):
        for backbone in CONFIG.backbones():
            assert series(own(folder, name), f"controls/{backbone}") == mean_curve(records, backbone, control)
    content = read(own(folder)).Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(content[0].tensor_proto).item())
    by_control = layout.category[0]
    assert [chart.title for chart in by_control.chart] == list(CONFIG.backbones())
    assert [list(chart.multiline.tag) for chart in by_control.chart] == [
        [r"^controls/test_resnet$"],
        [r"^controls/test_vit$"],
    ]


def test_a_control_that_ends_moves_its_mean(folder: Path) -> None:
    records = Records(folder)
    last = [
        row for row in records.trials.values() if (row.backbone, row.control, row.role) == ("test_vit", "plain", "control")
    ][-1]
    del records.trials[last.identity]
    board = StudyBoard(folder, CONFIG, records, 1)
    before = mean_curve(records, "test_vit", "plain")
    assert series(own(folder, "plain"), "controls/test_vit") == before
    records.trials[last.identity] = last
    board.ended(last, running=1, slots=1, gpu_utilisation=None)
    board.end(draw=False)
    after = mean_curve(records, "test_vit", "plain")
    assert after != before
    assert series(own(folder, "plain"), "controls/test_vit") == after


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_drivers_that_share_a_study_agree_at_its_end(folder: Path, order: tuple[int, int]) -> None:
    both = Records(folder)
    last = [row for row in both.trials.values() if (row.backbone, row.control, row.role) == ("test_vit", "plain", "control")][
        -2:
    ]
    views = [Records(folder), Records(folder)]
    for records in views:
        for row in last:
            del records.trials[row.identity]
    boards = [StudyBoard(folder, CONFIG, records, run) for run, records in enumerate(views, start=1)]
    for board, records, row in zip(boards, views, last, strict=True):  # each ends a trial, and knows nothing of the other's
        records.trials[row.identity] = row
        board.ended(row, running=1, slots=1, gpu_utilisation=None)
    for index in order:
        views[index].trials |= both.trials  # what it reads when it ends
        boards[index].end(draw=False)
    counts = Counter(row.status for row in both.trials.values())
    assert series(own(folder), "study/trials_finished")[-1] == (len(both.trials), counts["finished"])
    assert series(own(folder, "plain"), "controls/test_vit") == mean_curve(both, "test_vit", "plain")


def test_killed_and_run_again_it_stays_one_line(folder: Path) -> None:
    records = Records(folder)
    rows = sorted(records.trials.values(), key=lambda row: row.ended)
    for row in rows[10:]:
        del records.trials[row.identity]
    killed = StudyBoard(folder, CONFIG, records, 1)
    records.trials[rows[10].identity] = rows[10]
    killed.ended(rows[10], running=1, slots=1, gpu_utilisation=None)
    killed.end(draw=False)  # which writes nothing: every value is on disk at once
    again = StudyBoard(folder, CONFIG, Records(folder), 2)
    again.end(draw=False)
    finished = series(own(folder), "study/trials_finished")
    assert [step for step, _ in finished] == list(range(1, len(rows) + 1))
    assert series(own(folder), "study/trials_running") == [(11, 1.0)], "what only the killed driver knew"
    assert len(series(own(folder, "plain"), "controls/test_resnet")) == 5


def test_records_that_were_moved_away_do_not_break_it(folder: Path) -> None:
    StudyBoard(folder, CONFIG, Records(folder), 1).end(draw=False)
    StudyBoard(folder, CONFIG, Records(folder), 1).end(draw=False)
    assert {path.name for path in own(folder).glob("events*")} == {"events.out.tfevents.0001", "events.out.tfevents.0002"}


def test_response_curves_are_drawn_beside_the_study(folder: Path) -> None:
    records = Records(folder)
    board = StudyBoard(folder, CONFIG, records, 1)
    board.tick()
    deadline = time.monotonic() + 240
    while "response/balance" not in read(own(folder)).Tags()["tensors"]:
        assert time.monotonic() < deadline, "never drawn"
        time.sleep(0.2)
        board.tick()
    board.tick()  # not again so soon
    board.end(draw=True)
    for tag in ("response/balance", "response/pretraining_epochs"):
        *_, (step, picture) = pictures(read(own(folder)), tag)
        assert (step, picture.format, picture.size) == (len(records.trials), "PNG", (340, 260))
        colors = picture.convert("RGB").getcolors(maxcolors=340 * 260)
        assert colors is not None
        assert len(colors) > 50, "it is blank"


def test_only_what_was_searched_is_drawn(folder: Path) -> None:
    space = {path: item for path, item in CONFIG.search_space.items() if path != "pretraining.epochs"}
    rows = [row for row in Records(folder).trials.values() if row.number is not None and row.status == "finished"]
    assert draw_curves(dataclasses.replace(CONFIG, search_space=space), rows).keys() == {"response/balance"}
    assert draw_curves(CONFIG, rows[:2]).keys() == {"response/balance", "response/pretraining_epochs"}


def test_a_confirmation_has_a_chart_for_each_configuration_and_no_search(tmp_path: Path) -> None:
    write_study(tmp_path, CONFIG, top=2, num_seeds=2)
    folder = tmp_path / "made-up.confirm"
    records = Records(folder)
    config, _ = read_written(Files(str(folder)))
    StudyBoard(folder, config, records, 1).end(draw=True)
    run = read(own(folder))
    tags = run.Tags()["tensors"]
    assert "study/best_accuracy" not in tags
    assert not [tag for tag in tags if tag.startswith("response/")]
    assert series(own(folder), "study/trials_finished")[-1] == (len(records.trials), len(records.trials))
    content = run.Tensors(metadata.CONFIG_SUMMARY_TAG)[0].tensor_proto
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(content).item())
    names = ["test_resnet", "test_resnet, number 2", "test_vit", "test_vit, number 2"]
    assert [chart.title for chart in layout.category[0].chart] == names
    [look] = read_looks(folder)
    for chosen in look.chosen:
        for control in ("regulated", "plain", "compute_matched"):
            identities = {
                trial.identity for trial in look.trials if (trial.chosen, trial.control) == (chosen.identity, control)
            }
            curve = series(own(folder, control_name(control)), f"controls/{chosen.name}")
            last = [records.epochs_of(identity)[-1].val_accuracy or 0.0 for identity in identities]
            assert curve[-1][1] == pytest.approx(sum(last) / len(last))
            assert len(last) == 2
