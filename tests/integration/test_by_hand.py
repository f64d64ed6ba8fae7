"""A running study hears what people ask of it, and ends before its budget does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import emoreg
from emoreg.results.status import read_status
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.test_study import optuna_states, run, start, trials

pytestmark = pytest.mark.slow
LONG = ("--trial.regulation.batch-size", "2", "--trial.task.num-images", "160")


def test_a_running_study_takes_up_an_enqueued_trial_and_loses_one_that_is_stopped(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--num-trials", "2", "--controls")
    place = str(tmp_path / "tiny")

    def searched() -> list[str]:
        if not (tmp_path / "tiny" / "study.json").exists():
            return []
        return [trial.identity for trial in read_status(place).running or () if trial.stage == "regulation"]

    wait_for(lambda: bool(searched()), process)
    study = emoreg.load_study(place).enqueue({"regulation.balance": 0.125})
    stopped = study.stop_trial(searched()[0][:6])
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    rows = trials(tmp_path)
    first, second, *_ = sorted(rows.values(), key=lambda row: str(row["ended"]))
    assert (first["identity"], first["status"], first["end_reason"]) == (stopped, "pruned", "stopped_by_hand")
    assert (second["balance"], second["status"]) == (0.125, "finished")
    assert [state.name for state in optuna_states(tmp_path)] == ["PRUNED", "COMPLETE"]
    assert not [*(tmp_path / "tiny" / "requests").iterdir()]


@pytest.mark.soak
def test_a_study_ends_before_slurm_does_and_goes_on_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 60 + 5 + 45))
    output = run(tmp_path, *LONG, "--trial.regulation.epochs", "50", "--resources.grace-seconds", "5", code=130)
    assert int(os.environ["SLURM_JOB_END_TIME"]) > time.time()
    assert "The study stops before Slurm ends job 7" in output
    assert "Run study 'tiny' again to go on: it stopped before Slurm ends job 7; 0 of 5 trials have ended" in output
    assert "stopped before Slurm ends job 7; run it again to go on" in run_status(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID")
    refused = run(tmp_path, *LONG, "--trial.regulation.epochs", "50", "--budget.device-hours", "0.001", code=2)
    assert "Raise budget.device_hours to go on" in refused
    assert "starting Ray" not in refused


def run_status(storage: Path) -> str:
    command = [sys.executable, "-m", "emoreg", "status", str(storage / "tiny")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
