from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emoreg.config import Choice, Float, SamplerConfig, StudyConfig
from emoreg.config.search_space import num_searched
from emoreg.errors import ConfigError, StorageError
from emoreg.results.records import Provenance, Records
from emoreg.results.status import Now, print_study_status, read_status
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy, only_driver
from tests.helpers.written import PROVENANCE, made_up_config, write_study
from tests.test_progress import epoch

HEAVY = {"torch", "ray", "scipy", "pandas", "statsmodels", "optuna", "sklearn", "matplotlib", "sqlalchemy"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("written")
    write_study(storage)
    return storage


def begin(folder: Path, provenance: Provenance = PROVENANCE) -> int:
    """Begin another run of a study, as a driver does; its number."""
    return Records(folder).begin_run(provenance).run


@contextmanager
def driven(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study, as a driver does, for the time of a block."""
    hold = (
        "import sys\nfrom emoreg.storage.files import Files\nfrom emoreg.storage.working_copy import only_driver\n"
        "with only_driver(Files(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def shown(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    assert print_study_status(str(folder), as_json=False) == 0
    return capsys.readouterr().out


def test_a_study_that_is_done(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = storage / "made-up"
    status = read_status(str(folder))
    rows = Records(folder).trials.values()
    assert (status.state, status.ending, status.num_runs) == ("ended", "whole", 1)
    assert status.trials.ended == status.trials.planned == len(rows) == 40 + 3 * 2 * 6
    assert (status.trials.pruned, status.trials.failed) == (6, 2)
    best = max((row for row in rows if row.number is not None and row.status == "finished"), key=lambda row: row.accuracy or 0)
    assert status.best is not None
    assert (status.best.identity, status.best.value) == (best.identity, best.accuracy)
    assert status.best.params == json.loads(best.params)
    assert (status.running, status.seconds_left, status.slots, status.confirmation) == ((), None, 2, None)
    assert status.waiting_share == pytest.approx(0.05 / 1.1)
    text = shown(capsys, folder)
    assert "made-up: done, every trial has ended; its last trial ended " in text
    assert "trials    76/76: 68 finished, 6 pruned, 2 failed\n" in text
    assert f"best      accuracy {best.accuracy:.4g}: {best.backbone}, regulation.balance " in text


def test_a_confirmation_shows_its_seeds_instead_of_a_best(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = read_status(str(storage / "made-up.confirm"))
    assert status.best is None
    assert status.confirmation is not None
    assert {(row.finished, row.planned) for row in status.confirmation} == {(10, 10)}
    assert [row.control for row in status.confirmation][:3] == ["regulated", "plain", "compute_matched"]
    text = shown(capsys, storage / "made-up.confirm")
    assert "best" not in text
    assert text.split("finished\n")[-1].startswith("  regulation  test_resnet     10/10\n")


def test_configurations_that_share_a_control_are_done_with_it(tmp_path: Path) -> None:
    write_study(tmp_path, made_up_config(num_trials=12), top=2, num_seeds=3)
    status = read_status(str(tmp_path / "made-up.confirm"))
    assert status.confirmation is not None
    done = {(row.backbone, row.control): (row.finished, row.planned) for row in status.confirmation}
    assert done["test_resnet", "plain"] == (3, 3)
    assert done["test_resnet", "regulated"] == (6, 6)


def test_json_has_every_field_and_null_for_what_is_unknown(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_study_status(str(storage / "made-up"), as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == {
        "name", "place", "state", "ending", "num_runs", "started", "last_ended", "trials", "running", "num_waiting", "best",
        "slots", "waiting_share", "seconds_left", "confirmation",
    }  # fmt: skip
    assert content["trials"] == {"planned": 76, "finished": 68, "pruned": 6, "failed": 2, "ended": 76}
    assert content["seconds_left"] is content["num_waiting"] is content["confirmation"] is None
    assert content["best"]["params"].keys() == {"backbone", "regulation.balance", "pretraining.epochs"}


def test_a_driver_that_was_killed_is_told_from_one_that_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=5), num_seeds=0)
    config = made_up_config(num_trials=5)
    control = config.control_trials()[1]
    now = Now(folder, begin(folder))
    now.started(control, "control")
    now.started(config.trial, "search")
    now.epoch(epoch(control.identity, "regulation", 2))
    now.stopped(config.trial.identity)
    now.write(slots=3, num_waiting=1)
    with driven(folder):
        status = read_status(str(folder))
        assert (status.state, status.ending, status.slots, status.num_waiting) == ("running", None, 3, 1)
        assert status.running is not None
        (running,) = status.running
        assert (running.identity, running.control, running.stage) == (control.identity, "plain", "regulation")
        assert (running.epoch, running.epochs, running.accuracy) == (2, 5, 0.5)
        text = shown(capsys, folder)
        assert "made-up: running for " in text
        assert f"  plain        {control.identity}  test_resnet  regulation    2/5     0.500\n" in text
    status = read_status(str(folder))
    assert (status.state, status.running) == ("killed", ()), "what a dead driver left says nothing"
    assert "made-up: killed, for its last run has no end and no driver lives" in shown(capsys, folder)
    now.end()
    assert not list(folder.glob("records/now.*"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"time": "2026-01-01T00:00:00.000+00:00"}'])
def test_a_damaged_word_on_what_runs_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    path = folder / "records" / f"now.{begin(folder)}.json"
    path.write_text(content)
    with driven(folder):
        status = read_status(str(folder))
    assert (status.state, status.running, status.slots) == ("running", None, None)
    Now(folder, begin(folder))
    assert not path.exists(), "the next driver clears it away"


def test_a_driver_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    with driven(folder):
        status = read_status(str(folder))
        assert (status.state, status.started, status.running) == ("running", None, None)
        assert "made-up: starting\n" in shown(capsys, folder)


def test_looking_takes_no_lock_away(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    (folder / ".lock").touch()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert read_status(str(folder)).state == "ended"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with only_driver(Files(str(folder))):
        assert read_status(str(folder)).state == "running"
        with pytest.raises(StorageError, match="one driver at a time"), only_driver(Files(str(folder))):
            pass


def test_time_left_is_that_of_this_run(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=20), num_seeds=0)
    records = Records(folder)
    first = next(identity for identity, row in records.trials.items() if row.role == "control")
    del records.trials[first]
    records.write()
    began = dataclasses.replace(records.begin_run(PROVENANCE), num_trials=5)
    records.add_run(began)
    with driven(folder):
        status = read_status(str(folder))
    assert (status.trials.ended, status.trials.planned) == (55, 56)
    assert status.seconds_left is not None
    assert 0 <= status.seconds_left < 60
    assert read_status(str(folder)).seconds_left is None


def test_several_drivers_in_a_database_live_by_their_signs_of_life(tmp_path: Path) -> None:
    config = made_up_config(num_trials=2, optuna_storage="postgresql://user:secret@host/name")
    folder = write_study(tmp_path, config, num_seeds=0)
    runs = [begin(folder) for _ in range(2)]
    assert read_status(str(folder)).state == "killed"
    first, second = (Now(folder, run) for run in runs)
    assert read_status(str(folder)).state == "running"
    for now, control in zip((first, second), config.control_trials(), strict=False):
        now.started(control, "control")
        now.write(slots=2, num_waiting=0)
    status = read_status(str(folder))
    assert (status.state, status.slots) == ("running", 4)
    assert status.running is not None
    assert [row.identity for row in status.running] == [trial.identity for trial in config.control_trials()[:2]]
    for path in folder.glob("records/now.*"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": "2026-01-01T00:00:00.000+00:00"}))
    assert read_status(str(folder)).state == "killed"


def test_in_an_object_store(tmp_path: Path, bucket: str) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    begin(folder)
    files = Files(bucket)
    for path in folder.rglob("*.*"):
        if path.is_file():
            files.write(path.relative_to(folder).as_posix(), path.read_bytes())
    assert read_status(bucket).state == "killed"
    with only_driver(files):
        status = read_status(bucket)
        assert (status.state, status.trials.ended) == ("running", 38)
        assert "secret" not in status.place
    files.write(".driver.json", json.dumps({"host": "gone", "process": 1, "token": "", "time": time.time() - 60}).encode())
    assert read_status(bucket).state == "killed"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"controls": ("regulated", "untrained"), "control_seeds": (0, 1)},
        {
            "sampler": SamplerConfig(name="grid"),
            "search_space": {"regulation.balance": Float(0.1, 0.9, step=0.2), "pretraining.epochs": Choice((1, 2))},
        },
    ],
)
def test_planned_trials_are_counted_as_the_study_runs_them(tmp_path: Path, changes: dict[str, Any]) -> None:
    config: StudyConfig = made_up_config(**changes)
    folder = tmp_path / "made-up"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"config": dataclasses.asdict(config.without_password())}))
    status = read_status(str(folder))
    assert status.state == "not run"
    assert status.trials.planned == num_searched(config) + len({trial.identity for trial in config.control_trials()})
    assert (status.best, status.slots, status.waiting_share, status.started) == (None, None, None, None)


def test_what_cannot_be_read_is_said_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.json, but .* has none"):
        read_status(str(tmp_path))
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StorageError, match=r"study\.json must be as emoreg wrote it"):
        read_status(str(tmp_path))
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    path = folder / "records" / "trials.parquet"
    pq.write_table(pa.table({"identity": ["a"]}), path)
    with pytest.raises(StorageError, match="records must have schema version 1 to"):
        read_status(str(folder))
    path.write_bytes(b"no Parquet")
    with pytest.raises(StorageError, match="records must be Parquet"):
        read_status(str(folder))


def test_ten_thousand_trials_in_a_second_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(), num_seeds=0)
    path = folder / "records" / "trials.parquet"
    searched = [row for row in pq.read_table(path).to_pylist() if row["role"] == "search"]
    names = pq.read_schema(path)
    many = [searched[index % len(searched)] | {"identity": f"{index:012x}", "number": index} for index in range(10_000)]
    pq.write_table(pa.Table.from_pylist(many, schema=names), path)
    code = (
        "import sys\nfrom emoreg.cli.main import main\ntry:\n    main(['status', sys.argv[1], '--json'])\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert json.loads(done.stdout)["trials"]["ended"] == 10_000
    assert not HEAVY & set(done.stderr.split())
    assert seconds < 1, "of a processor: tests run beside others"


def test_a_working_copy_carries_what_runs_now(tmp_path: Path, bucket: str) -> None:
    with WorkingCopy(Files(bucket)) as copy:
        now = Now(copy.folder, 1)
        now.write(slots=1, num_waiting=0)
        copy.push("records")
        assert Files(bucket).exists("records/now.1.json")
        now.end()
        copy.push("records")
        assert not Files(bucket).exists("records/now.1.json")
