"""How a study ends when it is told to stop, when the machine fails, when code is wrong, and when the disk is full."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from pathlib import Path

import pytest
from optuna.trial import TrialState

from emoreg.config.resolved import resolve_trial
from emoreg.storage import checkpoint
from emoreg.storage.files import Files
from emoreg.tuning.images import prepare_image_sets
from tests.helpers.disks import need_mounts, read_only, small_disk
from tests.helpers.trials import load_state
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration import tiny_study
from tests.integration.test_study import optuna_states, run, settled, start, trials

# An epoch of many steps, so that a signal comes in its middle.
LONG = ("--trial.regulation.epochs", "1", "--trial.regulation.batch-size", "2", "--trial.task.num-images", "240")
ONE = ("--num-trials", "1", "--controls", "--trial.pretraining.epochs", "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    run(storage, *LONG, *ONE)
    return storage


def is_training(storage: Path) -> bool:
    """Whether the trial has ended its one epoch of pre-training: its second stage's take seconds here."""
    return any("pretraining epoch" in path.read_text() for path in storage.glob("tiny/trials/*/log.txt"))


def checkpoints(storage: Path) -> list[checkpoint.State]:
    states = [load_state(path) for path in storage.glob("tiny/trials/*/trial.ckpt")]
    return [state for state in states if state is not None]


def freeze_workers(storage: Path) -> None:
    """Leave trials that answer nothing: a study that is told to stop would wait for them."""
    for path in storage.glob("tiny/trials/*/log.txt"):
        for worker in re.findall(r"process (\d+)", path.read_text()):
            os.kill(int(worker), signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGHUP, marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.soak),
    ],
)
def test_told_to_stop_it_finishes_the_step_saves_and_goes_on_the_next_time(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, *LONG, *ONE)
    wait_for(lambda: is_training(tmp_path), process)
    if number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    else:  # a lost terminal and a cluster's scheduler send it to all that was started, perhaps twice
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert "finish their step and save" in output
    assert "run the same command again" in output
    assert "Traceback" not in output
    (state,) = checkpoints(tmp_path)
    assert state["step_in_epoch"] > 0, "it was saved in the middle of an epoch"
    assert optuna_states(tmp_path) == [TrialState.RUNNING]
    assert not (tmp_path / "tiny" / "records" / "trials.parquet").exists() or not trials(tmp_path)

    run(tmp_path, *LONG, *ONE)
    assert settled(trials(tmp_path)) == settled(trials(undisturbed))
    assert optuna_states(tmp_path) == [TrialState.COMPLETE]


@pytest.mark.slow
def test_told_twice_it_leaves_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, *ONE)
    wait_for(lambda: is_training(tmp_path), process)
    workers = [
        int(pid) for path in tmp_path.glob("tiny/trials/*/log.txt") for pid in re.findall(r"process (\d+)", path.read_text())
    ]
    for worker in workers:  # a trial that cannot answer: the first signal would wait for it
        os.kill(worker, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout is not None
    seen = ""
    while "finish their step and save" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, seen + rest
    assert "run the same command again" in rest


@pytest.mark.soak
@pytest.mark.slow
def test_the_grace_period_after_sigterm_ends(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, *ONE, "--resources.grace-seconds", "0.5")
    wait_for(lambda: is_training(tmp_path), process)
    freeze_workers(tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output


def identities(storage: Path) -> list[str]:
    """The two controls of the tiny study, whose image sets are prepared in the storage."""
    config = dataclasses.replace(tiny_study.CONFIG, storage=str(storage))
    fingerprints = prepare_image_sets(config)
    return [resolve_trial(control, fingerprints).identity for control in config.control_trials()]


@pytest.mark.soak  # tuning/test_dispatcher.py retries, test_study.py records a broken trial
@pytest.mark.slow
def test_a_fault_of_the_machine_is_retried_and_then_recorded_with_the_log_s_tail(tmp_path: Path) -> None:
    broken, _ = identities(tmp_path)
    (tmp_path / "tiny" / "trials" / broken / "trial.ckpt" / "not empty").mkdir(parents=True)  # no file can be written there
    output = run(
        tmp_path, "--resources.max-retries", "1", "--resources.retry-seconds", "0.1", "--controls", "regulated", code=1
    )
    rows = trials(tmp_path)
    assert (rows[broken]["status"], rows[broken]["attempts"]) == ("failed", 2)
    assert "trial.ckpt" in str(rows[broken]["message"])
    assert "attempt 2 on" in str(rows[broken]["log_tail"])
    assert "Error" in str(rows[broken]["log_tail"])
    assert output.count("begun again soon") == 1
    assert [row["status"] for identity, row in rows.items() if identity != broken] == ["finished"] * 3
    # Mended and run again, it is run again, and alone.
    (tmp_path / "tiny" / "trials" / broken / "trial.ckpt" / "not empty").rmdir()
    (tmp_path / "tiny" / "trials" / broken / "trial.ckpt").rmdir()
    run(tmp_path, "--controls", "regulated")
    assert trials(tmp_path)[broken]["status"] == "finished"


@pytest.mark.soak
@pytest.mark.slow
def test_a_full_memory_is_recorded_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    output = run(tmp_path, *ONE, "--resources.max-retries", "0", code=1)
    assert "(raylet)" not in output
    assert "\x1b[" not in output
    (row,) = trials(tmp_path).values()
    assert re.match(r"the memory of its node was full \(.*\), so Ray ended its worker: run fewer trials", str(row["message"]))


@pytest.mark.soak
@pytest.mark.slow
def test_faults_in_code_stop_the_study_with_the_traceback(tmp_path: Path) -> None:
    for identity in identities(tmp_path):
        checkpoint.save(Files(str(tmp_path)), f"tiny/trials/{identity}/trial.ckpt", {"history": [{"no": "epoch"}]})
    output = run(tmp_path, "--resources.max-failures", "2", "--resources.max-concurrent", "1", code=1)
    rows = trials(tmp_path)
    assert [row["status"] for row in rows.values()].count("failed") == 2
    assert len(rows) <= 3, "the budget was burned on"
    assert all(row["attempts"] == 1 for row in rows.values())
    assert "Traceback" in output
    assert "KeyError" in output
    assert "resources.max_failures" in output
    for identity in identities(tmp_path):
        assert "KeyError" in str(rows[identity]["message"])
        assert "Traceback" in str(rows[identity]["log_tail"])


def everything_is_whole(storage: Path) -> None:
    if (storage / "tiny" / "records" / "trials.parquet").exists():
        trials(storage)
    for path in [*storage.glob("tiny/trials/*/trial.ckpt"), *storage.glob("experience/*/*.ckpt")]:
        assert load_state(path) is not None
    assert not list(storage.rglob("*.bad"))


@pytest.mark.soak
@pytest.mark.slow
def test_a_disk_with_too_little_room_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 20) as small:
        output = run(small.folder, code=2)
        assert re.search(r"Free [\d.]+ MiB in .*, or ask for less: --resources\.keep-networks none", output)
        assert not list(small.folder.glob("tiny/trials/*"))
        small.grow(200)
        run(small.folder)


@pytest.mark.soak
@pytest.mark.slow
def test_a_full_disk_is_said_and_tears_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200) as small:
        disk = small.folder
        process = start(disk, "--resources.max-retries", "0")
        wait_for(lambda: any(disk.glob("tiny/trials/*/log.txt")), process)
        small.fill()
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, output
        assert "the disk is full" in output
        assert "run the same command again" in output
        everything_is_whole(disk)
        small.grow(400)
        run(disk)
        assert [row["status"] for row in trials(disk).values()] == ["finished"] * 5
        assert not list(disk.rglob("*.tmp"))


@pytest.mark.soak
@pytest.mark.slow
def test_a_storage_that_becomes_read_only_is_said_and_tears_nothing(tmp_path: Path) -> None:
    need_mounts(tmp_path / "disk")
    records = tmp_path / "tiny" / "records"
    process = start(tmp_path)
    wait_for((records / "trials.parquet").exists, process)
    with read_only(records, lambda condition: wait_for(condition, process)):
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, output
        assert "it is read-only" in output
        everything_is_whole(tmp_path)
    run(tmp_path)
    assert [row["status"] for row in trials(tmp_path).values()] == ["finished"] * 5
