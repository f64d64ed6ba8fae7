"""What a driver leaves of what it runs, and how `status` sees whether one lives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from emoreg.config.resolved import resolve_trial
from emoreg.results.records import RunRecord
from emoreg.results.status import read_status
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.live_status import LiveStatus
from emoreg.tracking.observer import RunStatus
from tests.helpers.studies import ended
from tests.helpers.written import begin_run, driven, epoch_record, made_up_config, write_study


def standing(run: RunRecord, *, slots: int = 0, waiting: int = 0) -> RunStatus:
    return RunStatus(run=dataclasses.replace(run, slots=slots), num_running=0, num_waiting=waiting, trials={}, num_planned=0)


def test_a_driver_that_was_killed_is_told_from_one_that_lives(tmp_path: Path) -> None:
    config = made_up_config(num_trials=5)
    folder = write_study(tmp_path, config, num_seeds=0)
    control, searched, broken, saved = map(
        resolve_trial, (config.control_trials()[1], config.trial, *config.control_trials()[2:4])
    )
    now, run = LiveStatus(folder), begin_run(folder)
    now.on_run_start(standing(run))
    now.on_start(control, "control")
    for trial in (searched, broken, saved):
        now.on_start(trial, "search")
    now.on_epoch(control, epoch_record(control, "regulation", 2, 0.5))
    now.on_end(searched, ended(searched.config))
    now.on_retry(broken, "its worker died")
    now.on_saved(saved)
    now.on_epoch(saved, epoch_record(saved, "regulation", 1, 0.5))  # on its way when the trial saved
    now.on_tick(standing(run, slots=3, waiting=1))
    with driven(folder):
        status = read_status(str(folder))
    assert (status.state, status.ending, status.slots, status.num_waiting) == ("running", None, 3, 1)
    assert status.running is not None
    (running,) = status.running
    assert (running.identity, running.control, running.stage) == (control.identity, "plain", "regulation")
    assert (running.epoch, running.epochs, running.accuracy) == (2, 5, 0.375)
    status = read_status(str(folder))
    assert (status.state, status.running) == ("killed", ()), "what a dead driver left says nothing"
    now.on_run_end(standing(run))
    assert not list(folder.glob("records/live.*"))


def test_a_damaged_live_status_is_ignored(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    path = folder / "records" / f"live.{begin_run(folder).run}.json"
    contents = ("", "{", "[]", "{}", '{"time": "2026-01-01T00:00:00.000+00:00"}')
    with driven(folder):
        for content in contents:
            path.write_text(content)
            status = read_status(str(folder))
            assert (status.state, status.running, status.slots) == ("running", None, None), content
    for content in contents:
        path.write_text(content)
        LiveStatus(folder).on_run_start(standing(begin_run(folder)))
        assert not path.exists(), "the next driver clears it away"


def test_what_a_killed_driver_left_is_gone_with_the_next_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    killed, run = begin_run(folder), begin_run(folder)
    LiveStatus(folder).on_run_start(standing(killed))
    LiveStatus(folder, is_alone=True).on_run_start(standing(run))
    assert [path.name for path in folder.glob("records/live.*")] == [f"live.{run.run}.json"]


def test_a_driver_that_has_just_begun(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    with driven(folder):
        status = read_status(str(folder))
    assert (status.state, status.started, status.running) == ("running", None, None)


def test_several_drivers_in_a_database_live_by_their_signs_of_life(tmp_path: Path) -> None:
    config = made_up_config(num_trials=2, optuna_storage="postgresql://user:secret@host/name")
    folder = write_study(tmp_path, config, num_seeds=0)
    runs = [begin_run(folder) for _ in range(2)]
    assert read_status(str(folder)).state == "killed"
    drivers = [LiveStatus(folder) for _ in runs]
    controls = [resolve_trial(trial) for trial in config.control_trials()[:2]]
    for now, run in zip(drivers, runs, strict=True):
        now.on_run_start(standing(run))
    assert read_status(str(folder)).state == "running"
    for now, run, control in zip(drivers, runs, controls, strict=True):
        now.on_start(control, "control")
        now.on_tick(standing(run, slots=2))
    status = read_status(str(folder))
    assert (status.state, status.slots) == ("running", 4)
    assert status.running is not None
    assert [row.identity for row in status.running] == [trial.identity for trial in controls]
    for path in folder.glob("records/live.*"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": "2026-01-01T00:00:00.000+00:00"}))
    assert read_status(str(folder)).state == "killed"


def test_a_working_copy_carries_it(tmp_path: Path, bucket: str) -> None:
    run = begin_run(write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0))
    with WorkingCopy(Files(bucket)) as copy:
        now = LiveStatus(copy.folder)
        now.on_run_start(standing(run))
        copy.push("records")
        assert Files(bucket).exists(f"records/live.{run.run}.json")
        now.on_run_end(standing(run))
        assert not (copy.folder / "records" / f"live.{run.run}.json").exists()
