"""Controls with searches of their own, from a run that is killed to a verdict that each arm's own best stands behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.command_line import emoreg_here
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.test_study import settled, trials

STUDY = Path(__file__).with_name("tuned_study.py")
ARMS = (None, "plain", "compute_matched", "ensemble", "untrained", "shuffled")


def command(name: str, storage: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "emoreg", name, str(STUDY), "--storage", str(storage), *options]


def emoreg(name: str, storage: Path, *options: str) -> str:
    done = subprocess.run(command(name, storage, *options), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_each_arm_is_tuned_alike_and_confirmed_at_its_own_best(tmp_path: Path) -> None:
    early = ("--scheduler.name", "asha", "--scheduler.grace-epochs", "2")
    first = subprocess.Popen(
        command("run", tmp_path, *early), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    records = tmp_path / "tiny" / "records" / "trials.parquet"
    wait_for(lambda: records.exists() and pq.read_metadata(records).num_rows >= 5, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    killed = settled(trials(tmp_path))
    emoreg("run", tmp_path, *early)
    rows = trials(tmp_path)
    assert {identity: settled(rows)[identity] for identity in killed} == killed, "an ended trial was run again"
    found = Counter(row["search_of"] for row in rows.values() if row["number"] is not None)
    assert found == dict.fromkeys(ARMS, 2), "as many trials for each arm, whatever was killed"
    assert emoreg("run", tmp_path, *early).count("none was missing") == 1
    status = emoreg_here("status", str(STUDY), "--storage", str(tmp_path))
    assert "searches of controls" in status
    assert status.count("2/2") == 5

    output = emoreg("confirm", tmp_path, "--seeds", "3", "--underpowered")
    assert "Regulation beside its controls, each at its own best, on the test set" in output
    assert "The mechanism: controls at regulation's settings, on the test set" in output
    assert "not tuned" not in output.partition("each at its own best")[2].partition("The mechanism")[0].replace(
        "emotional, not tuned", ""
    )
    assert "test_resnet: " in output
    assert "settings of the tuned method" not in output
    assert trials(tmp_path) == rows, "the search was touched"
