"""Whole studies through the command line, on a real Ray, with real image sets: run, run again, extended, killed, broken."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

import emoreg
from emoreg.config import replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.results.analysis import pretraining_epochs
from emoreg.tuning.images import prepare_image_sets
from tests.helpers.tensorboard import metrics_of, tensorboard
from tests.helpers.trials import Recorder
from tests.helpers.trials import run as run_alone
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration import tiny_study

pytestmark = pytest.mark.slow
STUDY = Path(__file__).with_name("tiny_study.py")
VOLATILE = {"started", "ended", "pretraining_seconds", "experience_seconds", "regulation_seconds", "device_seconds"}


IMPATIENT = ("tests.integration.impatient_run",)


def command(storage: Path | str, *overrides: str, program: Sequence[str] = ("emoreg", "run")) -> list[str]:
    return [sys.executable, "-m", *program, str(STUDY), "--storage", str(storage), *overrides]


def run(storage: Path | str, *overrides: str, code: int = 0) -> str:
    done = subprocess.run(command(storage, *overrides), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def trials(storage: Path, name: str = "tiny") -> dict[str, dict[str, object]]:
    with pq.ParquetFile(storage / name / "records" / "trials.parquet") as stored:  # opened once: its driver may replace it
        rows = stored.read().to_pylist()
    by_identity = {row["identity"]: row for row in rows}
    assert len(by_identity) == len(rows), "a trial is recorded twice"
    return by_identity


def settled(rows: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """What does not depend on the clock."""
    return {identity: {k: v for k, v in row.items() if k not in VOLATILE} for identity, row in rows.items()}


def optuna_states(storage: Path) -> list[TrialState]:
    journal = optuna.storages.journal.JournalFileBackend(str(storage / "tiny" / "optuna.journal"))
    study = optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(journal))
    return [trial.state for trial in study.trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study that ran undisturbed, one trial at a time, so that its sampler saw each before the next."""
    storage = tmp_path_factory.mktemp("finished")
    output = run(storage, "--resources.max-concurrent", "1")
    assert f"emoreg tensorboard {storage / 'tiny'}" in output
    return storage


def test_what_is_left_on_disk(finished: Path) -> None:
    folder = finished / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "events",
        "optuna.journal",
        "records",
        "study.json",
        "trials",
    }
    assert {path.name for path in finished.iterdir()} == {"experience", "imagesets", "tiny"}
    rows = trials(finished)
    assert sorted((row["role"], row["control"], row["status"]) for row in rows.values()) == [
        ("control", "plain", "finished"),
        ("control", "regulated", "finished"),
        *[("search", "regulated", "finished")] * 3,
    ]
    epochs = pq.read_table(folder / "records" / "epochs.parquet").to_pylist()
    for identity, row in rows.items():
        own = [epoch for epoch in epochs if epoch["identity"] == identity and epoch["stage"] == "regulation"]
        assert [epoch["epoch"] for epoch in own] == [1, 2, 3, 4]
        assert own[-1]["val_accuracy"] == row["val_accuracy"]
        assert list((folder / "events" / identity).glob("events.out.tfevents.*"))
    assert {path.name for path in (folder / "trials").iterdir()} == rows.keys()
    best = max((row for row in rows.values() if row["role"] == "search"), key=lambda row: float(str(row["val_accuracy"])))
    assert list(folder.glob("trials/*/trial.ckpt")) == [folder / "trials" / str(best["identity"]) / "trial.ckpt"], (
        "the best alone"
    )
    evaluations = pq.read_table(folder / "records" / "evaluations.parquet").to_pylist()
    for identity, row in rows.items():
        own = [found for found in evaluations if found["identity"] == identity]
        assert {found["split"] for found in own} == {"validation"}
        share = sum(found["num_correct"] for found in own) / sum(found["num_images"] for found in own)
        assert share == row["val_accuracy"]
    (ran,) = pq.read_table(folder / "records" / "runs.parquet").to_pylist()
    assert (ran["run"], ran["ending"], ran["slots"], ran["num_trials"]) == (1, "completed", 1, 5)
    assert ran["paid_seconds"] == pytest.approx(sum(float(str(row["pretraining_seconds"])) for row in rows.values()))
    assert optuna_states(finished) == [TrialState.COMPLETE] * 3
    written = json.loads((folder / "study.json").read_text())
    assert {"config", "versions", "git_commit", "device", "fingerprints"} <= written.keys()
    assert written["config"]["trial"]["image_size"] == 8


def test_tensorboard_shows_the_finished_study(finished: Path) -> None:
    rows = trials(finished)
    with tensorboard(finished / "tiny" / "events") as server:

        def tags() -> dict[str, list[str]]:
            read: dict[str, list[str]] = server.json("data/plugin/scalars/tags")
            return read

        wait_for(lambda: all("trial/outcome" in tags().get(run, ()) for run in rows))
        groups = server.session_groups()
        assert groups.keys() == rows.keys()
        images = server.json("data/plugin/images/tags")
        for run, row in rows.items():
            curve = server.json("data/plugin/scalars/scalars", run=run, tag="regulation/val_accuracy")
            assert [step for _, step, _ in curve] == [1, 2, 3, 4]
            assert curve[-1][2] == pytest.approx(row["val_accuracy"])
            assert groups[run]["sessions"][0]["status"] == "STATUS_SUCCESS"
            assert metrics_of(groups[run])["regulation/val_accuracy"] == pytest.approx(row["val_accuracy"])
            assert groups[run]["hparams"]["regulation.balance"] == pytest.approx(row["balance"])
            assert {"samples/regulation", "trial/confusion_validation"} <= images[run].keys()


def test_a_trial_in_a_used_worker_equals_the_same_trial_alone(finished: Path, tmp_path: Path) -> None:
    # One worker ran all the trials, one after the other: the last one found a process that had been used.
    row = max(trials(finished).values(), key=lambda row: str(row["ended"]))
    config = replace_paths(tiny_study.CONFIG.trial, json.loads(str(row["params"])))
    assert (
        resolve_trial(config, prepare_image_sets(dataclasses.replace(tiny_study.CONFIG, storage=str(finished)))).identity
        == row["identity"]
    )
    alone = Recorder()
    result, _, _ = run_alone(config, tmp_path, alone)
    assert (result.val_accuracy, result.val_loss) == (row["val_accuracy"], row["val_loss"])
    epochs = pq.read_table(finished / "tiny" / "records" / "epochs.parquet").to_pylist()
    ran = [epoch["train_loss"] for epoch in epochs if epoch["identity"] == row["identity"] and epoch["stage"] == "regulation"]
    assert alone.losses("regulation") == ran


def test_experience_is_paid_for_once(finished: Path) -> None:
    # One seed and one backbone: every trial that needs an experience, of 1 or 2 epochs, shares one pre-training run of 2.
    epochs = pq.read_table(finished / "tiny" / "records" / "epochs.parquet").to_pylist()
    paid = [epoch["epoch"] for epoch in epochs if epoch["stage"] == "pretraining"]
    assert paid == [1, 2]
    assert len(list((finished / "experience").glob("*/2.ckpt"))) == 1
    study = emoreg.load_study(finished / "tiny").results
    assert pretraining_epochs(study.trials, study.epochs).computed == pretraining_epochs(study.trials, study.epochs).least == 2


def test_run_again_runs_nothing_and_more_trials_extend(finished: Path) -> None:
    before = trials(finished)
    run(finished)
    assert trials(finished) == before
    run(finished, "--num-trials", "4", "--control-seeds", "0", "1")
    after = trials(finished)
    assert {identity: after[identity] for identity in before} == before
    new = [row for identity, row in after.items() if identity not in before]
    assert sorted((row["role"], row["seed"]) for row in new) == [("control", 1), ("control", 1), ("search", 0)]


def test_a_changed_study_is_refused_under_the_same_name(finished: Path) -> None:
    output = run(finished, "--trial.regulation.epochs", "5", code=2)
    assert "trial.regulation.epochs: 4 -> 5" in output
    assert "--name" in output
    assert "Traceback" not in output


def start(storage: Path | str, *overrides: str, program: Sequence[str] = ("emoreg", "run")) -> subprocess.Popen[str]:
    # Its own process group, so that a signal sent to it reaches nothing else.
    return subprocess.Popen(
        command(storage, "--resources.max-concurrent", "1", *overrides, program=program),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.soak  # test_object_store.py kills and compares in the slow lane
def test_a_killed_driver_run_again_ends_as_if_undisturbed(finished: Path, tmp_path: Path) -> None:
    records = tmp_path / "tiny" / "records" / "trials.parquet"
    process = start(tmp_path)
    wait_for(lambda: records.exists() and pq.read_metadata(records).num_rows >= 3, process)
    process.kill()
    process.communicate()
    killed = trials(tmp_path)
    (ran,) = pq.read_table(tmp_path / "tiny" / "records" / "runs.parquet").to_pylist()
    assert ran["ended"] is None
    assert ran["num_trials"] in (len(killed) - 1, len(killed))  # killed between the two files, perhaps
    run(tmp_path, "--resources.max-concurrent", "1")
    rows = trials(tmp_path)
    assert {identity: rows[identity] for identity in killed} == killed, "a finished trial was run again"
    assert sum(row["role"] == "search" for row in rows.values()) == 3
    assert TrialState.RUNNING not in optuna_states(tmp_path)
    undisturbed = settled(trials(finished))
    for identity in rows.keys() & undisturbed.keys():
        assert settled(rows)[identity] == undisturbed[identity]
    assert len(rows.keys() & undisturbed.keys()) >= 3  # the controls, and what was proposed before the kill
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_diverged_trial_is_pruned_with_its_step_and_not_run_again(tmp_path: Path) -> None:
    wild = ("--trial.regulation.optimizer.name", "sgd", "--trial.regulation.optimizer.learning-rate", "1e30")
    wild = (*wild, "--trial.regulation.optimizer.gradient-clip", "None", "--num-trials", "1", "--controls", "plain")
    run(tmp_path, *wild)
    rows = trials(tmp_path)
    assert {row["status"] for row in rows.values()} == {"pruned"}
    assert all("not finite at step" in str(row["message"]) for row in rows.values())
    assert optuna_states(tmp_path) == [TrialState.PRUNED]


def test_a_broken_trial_is_recorded_as_failed_with_the_reason(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights at all")
    overrides = ("--trial.weights", str(weights), "--num-trials", "1", "--controls", "--resources.max-retries", "0")
    output = run(tmp_path, *overrides, code=1)
    (row,) = trials(tmp_path).values()
    assert (row["role"], row["status"]) == ("search", "failed")
    assert "cannot be loaded" in str(row["message"])
    assert "cannot be loaded" in output
    assert optuna_states(tmp_path) == [TrialState.FAIL]


@pytest.mark.soak
def test_a_grid_point_that_a_control_ran_is_not_run_twice_and_counts_in_both(tmp_path: Path) -> None:
    grid = tmp_path / "grid.py"
    grid.write_text(
        "import dataclasses, emoreg\n"
        "from tests.integration import tiny_study\n"
        "space = {'regulation.balance': emoreg.Choice((0.25, 0.5))}\n"
        "study = emoreg.Study.from_config(dataclasses.replace(tiny_study.CONFIG, search_space=space, "
        "sampler=emoreg.SamplerConfig(name='grid'), controls=('regulated',)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "emoreg", "run", str(grid), "--storage", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = trials(tmp_path).values()
    assert sorted((row["balance"], row["role"], row["number"] is None) for row in rows) == [
        (0.25, "search", False),
        (0.5, "control", False),
    ]
    assert optuna_states(tmp_path) == [TrialState.COMPLETE] * 2
