"""Studies as jobs of a real Ray cluster, with a dashboard and a token, on this machine."""

from __future__ import annotations

import json
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.cluster import STUDY, Cluster, trials
from tests.integration.gate import Gate

pytestmark = pytest.mark.slow

LONG = ("--num-trials", "1", "--controls", "regulated", "--trial.regulation.epochs", "160")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(shared_cluster: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Starts the `emoreg` of a user who may use the cluster, somewhere else than in the checkout."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "elsewhere").mkdir()

    def emoreg(*arguments: str, address: str = shared_cluster.dashboard, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "emoreg", *arguments, "--address", address],
            env={**shared_cluster.environment, "COLUMNS": "100", **environment},
            cwd=tmp_path / "elsewhere",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield emoreg
    for process in started:
        with process:
            process.kill()  # that of a test that failed


@pytest.fixture
def emoreg(start: Start, shared_cluster: Cluster) -> Callable[..., tuple[int, str]]:
    """Exit code and output of a command."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        process = start(*arguments, **environment)
        output, _ = process.communicate(timeout=PATIENCE)
        assert shared_cluster.environment["RAY_AUTH_TOKEN"] not in output
        assert "Traceback" not in output
        return process.returncode, output

    return run


Run = Callable[..., tuple[int, str]]


def state(emoreg: Run, study: str) -> dict[str, Any]:
    code, output = emoreg("status", study, "--json")
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What a process prints up to a line that has the pattern."""
    assert process.stdout is not None
    text = ""
    while not re.search(pattern, text):
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        assert ready, f"silent after: {text}"
        line = process.stdout.readline()
        assert line, f"ended with: {text}"
        text += line
    return text


def test_a_study_and_its_confirmation_are_submitted_and_followed_to_their_ends(
    shared_cluster: Cluster, start: Start, emoreg: Run, tmp_path: Path
) -> None:
    """Study and control lie outside the checkout; the tunnel to the cluster breaks; two nodes pay once for an experience."""
    (tmp_path / "my_helper.py").write_text("NAME, HALF = 'mine', 0.25\n")
    shutil.copy(STUDY, tmp_path / "tiny.py")
    (tmp_path / "my_study.py").write_text(
        "import dataclasses, emoreg, my_helper\n"
        "from tiny import study as tiny\n"
        "@emoreg.control('halved')\n"
        "def halved(trial):\n"
        "    regulation = dataclasses.replace(trial.regulation, balance=my_helper.HALF)\n"
        "    return dataclasses.replace(trial, regulation=regulation)\n"
        "def study():\n"
        "    print('emoreg is from', emoreg.__file__)\n"
        "    return emoreg.Study.from_config(dataclasses.replace(tiny.config, name=my_helper.NAME, controls=('halved',)))\n"
    )
    storage = tmp_path / "a folder"
    submit = ("submit", str(tmp_path / "my_study.py"), "--num-trials", "2", "--storage", str(storage))
    with Gate(shared_cluster.dashboard.removeprefix("http://")) as gate:
        follower = start(*submit, address=f"http://{gate.address}")
        text = read_until(follower, "preparing image sets")
        gate.close()
        text += read_until(follower, "the dashboard does not answer; waiting until")
        gate.open()
        rest, _ = follower.communicate(timeout=PATIENCE)
    text += rest
    assert follower.returncode == 0, text
    assert "WARNING" not in text
    assert re.search(r"emoreg is from .*/working_dir_files/\S*/emoreg/__init__\.py", text)
    assert text.splitlines()[-1].startswith("study 'mine': done, job mine-")
    assert [row["status"] for row in trials(storage, "mine").values()] == ["finished"] * 3
    assert [row["balance"] for row in trials(storage, "mine").values() if row["control"] == "halved"] == [0.25]
    epochs = pq.read_table(storage / "mine" / "records" / "epochs.parquet").to_pylist()
    lengths = [epoch["epoch"] for epoch in epochs if epoch["stage"] == "pretraining"]
    assert sorted(lengths) == [*range(1, len(lengths) + 1)], "no epoch of pre-training was paid for twice"
    printed = emoreg("logs", "mine")[1]
    for line in printed.splitlines():
        if line.strip("─ "):
            assert text.count(line) == printed.count(line), f"{line!r} in {text}"

    job = state(emoreg, "mine")
    assert (job["state"], job["exit_code"], job["place"]) == ("SUCCEEDED", 0, str(storage / "mine"))
    assert (job["status"]["state"], job["status"]["trials"]["finished"]) == ("ended", 3)
    code, output = emoreg("status", "mine")
    assert "\n  trials    3/3: 3 finished\n" in output
    assert emoreg("stop", "mine") == (0, f"study 'mine': job {job['id']} is done already\n")

    code, output = emoreg(*submit, "--confirm", "--seeds", "1", "--underpowered")
    assert code == 0, output
    assert output.splitlines()[-1].startswith("study 'mine.confirm': done, job mine.confirm-")
    confirmed = trials(storage, "mine.confirm").values()
    assert {(row["status"], row["seed"], row["test_accuracy"] is None) for row in confirmed} == {("finished", 1000, False)}
    assert "halved" in {row["control"] for row in confirmed}
    assert state(emoreg, "mine")["id"] == job["id"], "the newest job of the study itself"
    typed = f" --confirm --seeds 1 --underpowered --address {shared_cluster.dashboard}"
    assert state(emoreg, "mine.confirm")["command"].endswith(typed)


def test_a_wrong_token_is_refused(shared_cluster: Cluster, emoreg: Run) -> None:
    code, output = emoreg("submit", str(STUDY), RAY_AUTH_TOKEN="0" * 32)
    assert code == 2
    assert f"{shared_cluster.dashboard} wants its own token, but Authentication failed" in output


def test_the_code_of_a_job_that_fails_is_passed_on_and_another_study_has_no_job(emoreg: Run, tmp_path: Path) -> None:
    code, output = emoreg("submit", str(STUDY), "--storage", str(tmp_path), "--resources.cpus-per-trial", "64")
    assert code == 2, output
    assert re.search(r"a trial of backbone 'test_resnet' asks for 64 CPUs and the cluster has \d nodes? with", output)
    assert "study 'tiny': failed with exit code 2, job tiny-" in output
    found = state(emoreg, "tiny")
    assert found["status"] is None, "the study has not begun"
    assert found["last_line"].startswith("emoreg: Ask for less")
    code, output = emoreg("status", "theirs")
    assert code == 2
    assert "the cluster has no job of 'theirs', but of tiny" in output


@pytest.mark.soak
def test_detached_looked_at_stopped_and_taken_up_again(
    shared_cluster: Cluster, start: Start, emoreg: Run, tmp_path: Path
) -> None:
    submit = ("submit", str(STUDY), "--storage", str(tmp_path), "--resources.checkpoint-seconds", "1", *LONG)
    follower = start(*submit)
    read_until(follower, "starting Ray")
    follower.send_signal(signal.SIGINT)
    rest, _ = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 0, rest
    ways = rf"\n  emoreg logs tiny --follow --address {shared_cluster.dashboard}\n"
    assert re.search(rf"Detached: job (tiny-\S+) goes on\.{ways}", rest)

    wait_for(lambda: any((tmp_path / "tiny" / "trials").glob("*/trial.ckpt")), shared_cluster.nodes[0])
    running = state(emoreg, "tiny")
    assert (running["state"], running["status"]["state"]) == ("RUNNING", "running")
    code, output = emoreg(*submit)
    assert code == 2
    assert "a study has one job at a time, but tiny-" in output

    code, output = emoreg("stop", str(STUDY))
    assert code == 0, output
    assert "was killed" not in output, "before it could save"
    assert output.endswith(f"  emoreg {' '.join(submit)} --address {shared_cluster.dashboard}\n")
    stopped = state(emoreg, "tiny")
    assert (stopped["state"], stopped["status"]["state"]) == ("STOPPED", "ended")
    before = {identity for identity, row in trials(tmp_path).items() if row["status"] == "finished"}
    assert len(before) < 2
    assert any((tmp_path / "tiny" / "trials").glob("*/trial.ckpt"))

    code, output = emoreg(*submit)
    assert code == 0, output
    rows = trials(tmp_path)
    assert [row["status"] for row in rows.values()] == ["finished"] * 2
    assert before <= rows.keys()
