"""Trials that a scheduler stops while storage is slow to take their checkpoint: Tune hands their worker to the next trial."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emoreg.cli.main import main
from emoreg.tuning.private_ray import TUNE_SETTINGS
from tests.integration.test_study import STUDY, trials

SHIM = Path(__file__).parents[1] / "faults" / "shim"
OVERRIDES = {
    "--num-trials": "6",
    "--trial.regulation.epochs": "2",
    "--trial.regulation.batch-size": "64",
    "--sampler.name": "random",
    "--scheduler.name": "asha",
    "--scheduler.reduction-factor": "4",
    "--resources.max-concurrent": "1",
    "--resources.checkpoint-seconds": "0",
    "--resources.retry-seconds": "0.1",
}


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("is_patient", [True, False])
def test_a_trial_that_gets_the_worker_of_a_stopped_one_is_not_lost(
    is_patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SHIM}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.setenv("EMOREG_TEST_SLOW_CHECKPOINTS", "2")
    if not is_patient:  # Tune gives the worker up, and the next trial with it, and tells nobody
        monkeypatch.setitem(TUNE_SETTINGS, "TUNE_FUNCTION_THREAD_TIMEOUT_S", "1")
    overrides = [word for pair in OVERRIDES.items() for word in pair]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(STUDY), "--storage", str(tmp_path), "--controls", *overrides])
    assert ended.value.code == 0
    statuses = [row["status"] for row in trials(tmp_path).values()]
    assert len(statuses) == 6
    assert set(statuses) == {"finished", "pruned"}
    assert ("begun again soon" in capsys.readouterr().out) is not is_patient
