from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.util import tensor_util

from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import StorageError
from emoreg.results.analysis import best_by_backbone
from emoreg.results.plan import read_openings
from emoreg.results.records import RunRecord, TrialRecord
from emoreg.results.tables import Records
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking import study_tensorboard
from emoreg.tracking.observer import RunStatus
from emoreg.tracking.study_tensorboard import RUN, StudyTensorBoard, write_study
from tests.helpers.tensorboard import read, series
from tests.helpers.waiting import wait_for
from tests.helpers.written import made_up_config
from tests.helpers.written import write_study as write_made_up

CONFIG = made_up_config(num_trials=20, control_seeds=(0, 1))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up(tmp_path_factory.mktemp("made up"), CONFIG, num_seeds=0)


@pytest.fixture
def folder(made_up: Path, tmp_path: Path) -> Path:
    """A copy of the study, for each test its own."""
    return Path(shutil.copytree(made_up, tmp_path / made_up.name))


def own(folder: Path, control: str = "") -> Path:
    return folder / "events" / RUN / control


def layout(folder: Path) -> layout_pb2.Layout:
    (event,) = read(own(folder)).Tensors(metadata.CONFIG_SUMMARY_TAG)
    return layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())


def status_of(run: RunRecord, trials: dict[str, TrialRecord], **values: int) -> RunStatus:
    return RunStatus(run=run, trials=trials, num_planned=40, **{"num_running": 1, "num_waiting": 0} | values)


def test_how_the_study_goes_on(folder: Path) -> None:
    rows = Records(folder).trials
    write_study(WorkingCopy(Files(str(folder))), CONFIG, rows, draw=False)
    best = series(own(folder), "study/best_val_accuracy")
    assert [step for step, _ in best] == list(range(best[0][0], len(rows) + 1))
    assert [value for _, value in best] == sorted(value for _, value in best)
    overall = max(row.val_accuracy or 0.0 for row in best_by_backbone(rows.values(), CONFIG.objectives[0]).values())
    assert best[-1][1] == pytest.approx(overall)
    counts = Counter(row.status for row in rows.values())
    for status in ("finished", "pruned", "failed"):
        line = series(own(folder), f"study/trials_{status}")
        assert [step for step, _ in line] == list(range(1, len(rows) + 1))
        assert line[-1][1] == counts[status]


def mean_curve(folder: Path, backbone: str, control: str) -> list[tuple[int, float]]:
    def is_its(row: TrialRecord) -> bool:
        return (row.role, row.backbone, row.control, row.status) == ("control", backbone, control, "finished")

    records = Records(folder)
    curves = [records.epochs_of(row.identity) for row in records.trials.values() if is_its(row)]
    curves = [[row for row in curve if row.stage == "regulation"] for curve in curves]
    return [
        (rows[0].epoch, pytest.approx(sum(row.val_accuracy or 0.0 for row in rows) / len(rows)))
        for rows in zip(*curves, strict=True)
    ]


def test_regulation_and_each_control_are_runs_that_share_a_chart(folder: Path) -> None:
    write_study(WorkingCopy(Files(str(folder))), CONFIG, Records(folder).trials, draw=False)
    for control in ("regulated", "plain", "neutral"):
        for backbone in CONFIG.backbones():
            assert series(own(folder, control), f"controls/{backbone}") == mean_curve(folder, backbone, control)
    by_control = layout(folder).category[0]
    assert [chart.title for chart in by_control.chart] == list(CONFIG.backbones())
    assert [list(chart.multiline.tag) for chart in by_control.chart] == [[f"^controls/{name}$"] for name in CONFIG.backbones()]


def test_written_again_it_stays_one_line(folder: Path) -> None:
    rows = Records(folder).trials
    first = dict(sorted(rows.items(), key=lambda item: item[1].ended)[:10])
    for trials in (first, rows, rows):
        write_study(WorkingCopy(Files(str(folder))), CONFIG, trials, draw=False)
    assert len(list(own(folder).glob("events*"))) == 1
    assert [step for step, _ in series(own(folder), "study/trials_finished")] == list(range(1, len(rows) + 1))
    assert series(own(folder, "plain"), "controls/test_vit") == mean_curve(folder, "test_vit", "plain")


def test_trials_of_other_commands_are_not_counted(folder: Path) -> None:
    rows = Records(folder).trials
    other = next(row for row in rows.values() if row.role == "search")
    write_study(
        WorkingCopy(Files(str(folder))), CONFIG, rows | {other.identity: dataclasses.replace(other, role="trial")}, draw=False
    )
    assert series(own(folder), "study/trials_failed")[-1][0] == len(rows) - 1


def observe(folder: Path, *, gpu: float | None) -> None:
    """A run of the study in which its last two trials end while two run, on three slots."""
    records = Records(folder)
    (run,) = records.runs.values()
    run = dataclasses.replace(run, run=2, slots=4, slot_seconds=100.0, waiting_slot_seconds=25.0)
    rows = sorted(records.trials.values(), key=lambda row: row.ended)
    trials = {row.identity: row for row in rows[:-2]}
    board = StudyTensorBoard(WorkingCopy(Files(str(folder))), CONFIG)
    board.on_run_start(status_of(run, trials))
    for row in rows[-2:]:
        trial = ResolvedTrial(config=CONFIG.trial, identity=row.identity)
        board.on_tick(status_of(run, trials, num_running=3))
        board.on_epoch(trial, dataclasses.replace(records.epochs_of(row.identity)[-1], gpu_utilisation=gpu))
        trials[row.identity] = row
        board.on_end(trial, row)
    board.on_run_end(status_of(dataclasses.replace(run, ending="interrupted"), trials))


def test_how_busy_a_run_keeps_slots_and_gpus(folder: Path) -> None:
    observe(folder, gpu=0.75)
    num_trials = len(Records(folder).trials)
    steps, run = [num_trials - 1, num_trials], own(folder, "run-2")
    assert series(run, "study/trials_running") == [*((step, 3.0) for step in steps), (num_trials, 0.0)]
    assert series(run, "study/slots_in_use") == [*((step, 0.75) for step in steps), (num_trials, 0.0)]
    assert series(run, "study/gpu_utilisation") == [(step, 0.75) for step in steps]
    assert series(run, "study/waiting_share") == [(step, 0.25) for step in (*steps, num_trials)]
    assert series(own(folder), "study/trials_finished")[-1][0] == num_trials, "the end of the run writes the study"


def test_without_a_gpu_there_is_no_such_curve(folder: Path) -> None:
    observe(folder, gpu=None)
    assert "study/gpu_utilisation" not in read(own(folder, "run-2")).Tags()["tensors"]


def test_it_is_written_while_trials_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.tracking.study_tensorboard._SECONDS", 0.0)
    records = Records(folder)
    (run,) = records.runs.values()
    board = StudyTensorBoard(
        WorkingCopy(Files(str(folder))), dataclasses.replace(CONFIG, search_space={"backbone": CONFIG.search_space["backbone"]})
    )
    board.on_run_start(status_of(run, records.trials))
    board.on_tick(status_of(run, records.trials))
    wait_for(
        lambda: bool([*own(folder).glob("events*"), *own(folder, "plain").glob("events*")]), told=lambda: "the study's runs"
    )
    board.on_run_end(status_of(run, records.trials))
    assert [*own(folder).glob("events*")], "the study's own run is there at the end"


def test_response_curves_are_images(folder: Path) -> None:
    rows = Records(folder).trials
    write_study(WorkingCopy(Files(str(folder))), CONFIG, rows, draw=True)
    write_study(WorkingCopy(Files(str(folder))), CONFIG, rows, draw=False)  # as where there is no time: they stay
    run = read(own(folder, "response"))
    for tag in ("response/regulation.balance", "response/pretraining.epochs"):
        (event,) = run.Tensors(tag)
        width, height, content = tensor_util.make_ndarray(event.tensor_proto)[:3]
        assert (event.step, int(width), int(height), content[:4]) == (len(rows), 340, 260, b"\x89PNG")


def test_a_confirmation_has_a_chart_for_each_configuration_and_no_search(tmp_path: Path) -> None:
    write_made_up(tmp_path, CONFIG, top=2, num_seeds=2)
    folder = tmp_path / "made-up.confirm"
    records, config = Records(folder), read_written(Files(str(folder))).config
    write_study(WorkingCopy(Files(str(folder))), config, records.trials, draw=True)
    tags = read(own(folder)).Tags()["tensors"]
    assert "study/best_val_accuracy" not in tags
    assert read(own(folder, "response")).Tags()["tensors"] == []
    assert series(own(folder), "study/trials_finished")[-1] == (len(records.trials), len(records.trials))
    names = ["test_resnet", "test_resnet, number 2", "test_vit", "test_vit, number 2"]
    assert [chart.title for chart in layout(folder).category[0].chart] == names
    [opening] = read_openings(Files(str(folder)))
    for chosen in opening.chosen:
        for control in ("regulated", "plain", "compute_matched"):
            mine = {trial.identity for trial in opening.trials if (trial.chosen, trial.control) == (chosen.identity, control)}
            curve = series(own(folder, control), f"controls/{chosen.name}")
            last = [records.epochs_of(identity)[-1].val_accuracy or 0.0 for identity in mine]
            assert curve[-1][1] == pytest.approx(sum(last) / len(last))
            assert len(last) == 2


@pytest.mark.parametrize(("error", "is_ours"), [(StorageError("Let the other driver end"), False), (KeyError("tag"), True)])
def test_a_write_that_fails_is_told_and_only_our_own_faults_with_a_traceback(
    error: Exception, is_ours: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(study_tensorboard, "write_study", fail)
    records = Records(folder)
    status = status_of(next(iter(records.runs.values())), dict(records.trials))
    observer = StudyTensorBoard(WorkingCopy(Files(str(folder))), CONFIG)
    observer.on_run_start(status)
    observer.on_run_end(status)
    (told,) = caplog.records
    assert told.getMessage() == f"the study could not be written for TensorBoard: {error}"
    assert bool(told.exc_info) is is_ours
