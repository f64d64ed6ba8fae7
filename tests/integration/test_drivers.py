"""Several drivers on one study, whose history is in a real PostgreSQL."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

from tests.helpers.tensorboard import series
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.test_study import IMPATIENT, run, start, trials

MORE = ("--num-trials", "4", "--sampler.name", "random", "--resources.max-concurrent", "1")


def states(database: str) -> list[TrialState]:
    storage = optuna.storages.RDBStorage(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        return [trial.state for trial in optuna.load_study(study_name="tiny", storage=storage).trials]
    finally:
        storage.engine.dispose()


def attempts(storage: Path) -> dict[str, int]:
    """How often each trial was begun, by any driver."""
    return {path.parent.name: path.read_text().count(" attempt ") for path in storage.glob("tiny/trials/*/log.txt")}


@pytest.mark.slow
def test_two_drivers_share_a_study(database: str, tmp_path: Path) -> None:
    drivers = [start(tmp_path, "--optuna-storage", database, *MORE) for _ in range(2)]
    outputs = [driver.communicate(timeout=PATIENCE)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    rows = trials(tmp_path)
    assert sum(row["role"] == "search" for row in rows.values()) == 4
    assert sum(row["role"] == "control" for row in rows.values()) == 2
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert states(database) == [TrialState.COMPLETE] * 4
    assert attempts(tmp_path) == dict.fromkeys(rows, 1), "a trial was run twice"
    epochs = pq.read_table(tmp_path / "tiny" / "records" / "epochs.parquet").to_pylist()
    assert sorted(row["epoch"] for row in epochs if row["stage"] == "pretraining") == [1, 2], (
        "a pre-training was paid for twice"
    )
    runs = pq.read_table(tmp_path / "tiny" / "records" / "runs.parquet").to_pylist()
    assert [run["ending"] for run in runs] == ["completed", "completed"]
    assert sum(run["num_trials"] for run in runs) == 6
    assert min(run["num_trials"] for run in runs) >= 1, "one driver did it all"
    finished = series(tmp_path / "tiny" / "events" / "study", "study/trials_finished")
    assert finished[-1] == (6, 6.0), finished
    assert all(number == step for step, number in finished), "one driver's curve contradicts the other's"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert "secret" not in "".join(outputs)


@pytest.mark.soak
@pytest.mark.slow
def test_a_driver_takes_over_what_a_killed_one_was_running(database: str, tmp_path: Path) -> None:
    first = start(tmp_path, "--optuna-storage", database, *MORE)
    wait_for(lambda: bool(attempts(tmp_path)), first)
    second = start(tmp_path, "--optuna-storage", database, *MORE)
    records = tmp_path / "tiny" / "records" / "trials.parquet"
    wait_for(lambda: records.exists() and len(trials(tmp_path)) >= 2, second)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    rows = trials(tmp_path)
    assert len(rows) == 6
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert states(database) == [TrialState.COMPLETE] * 4


@pytest.mark.soak
@pytest.mark.slow
def test_a_restart_of_postgresql_is_waited_for(database: str, postgresql: Any, tmp_path: Path) -> None:
    driver = start(tmp_path, "--optuna-storage", database, *MORE)
    records = tmp_path / "tiny" / "records" / "trials.parquet"
    wait_for(lambda: records.exists() and len(trials(tmp_path)) >= 2, driver)
    postgresql.stop()
    postgresql.start()
    output, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, output
    assert {row["status"] for row in trials(tmp_path).values()} == {"finished"}
    assert states(database) == [TrialState.COMPLETE] * 4
    assert attempts(tmp_path) == dict.fromkeys(trials(tmp_path), 1), "a trial was run twice"


@pytest.mark.soak
@pytest.mark.slow
def test_a_database_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    database: str, postgresql: Any, tmp_path: Path
) -> None:
    driver = start(tmp_path, "--optuna-storage", database, *MORE, program=IMPATIENT)
    records = tmp_path / "tiny" / "records" / "trials.parquet"
    wait_for(lambda: records.exists() and len(trials(tmp_path)) >= 3, driver)
    postgresql.stop()
    try:
        output, _ = driver.communicate(timeout=PATIENCE)
    finally:
        postgresql.start()
    assert driver.returncode == 2, output
    assert "postgresql+psycopg://postgres:***@127.0.0.1" in output
    assert "does not answer; waiting until" in output
    assert "emoreg: Run the same command again when optuna_storage answers" in output
    assert "Traceback" not in output
    before = trials(tmp_path)
    run(tmp_path, "--optuna-storage", database, *MORE)
    after = trials(tmp_path)
    assert {identity: after[identity] for identity in before} == before, "a finished trial was run again"
    assert len(after) == 6
    assert states(database) == [TrialState.COMPLETE] * 4
