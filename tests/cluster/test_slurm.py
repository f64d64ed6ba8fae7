"""The batch script on a real Slurm of two nodes, whose daemons run here for the time of the test."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster.files import CLUSTER, ROOT
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.test_study import STUDY, trials

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=emoreg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
FirstJobId={job}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    environment: dict[str, str]

    def say(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.stdout + done.stderr

    def is_idle(self) -> bool:
        return self.say("sinfo", "--noheader", "--format=%T %D") == "idle 2\n"

    def state(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.say("scontrol", "show", "job", job)))


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    path = f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "n1", "n2", "home"):
        (folder / name).mkdir()
    (folder / "munge.key-file").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key-file").chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, ports=free_ports(3), job=secrets.randbelow(90_000) + 1000
        )
    )
    (folder / "gres.conf").write_text("NodeName=n1,n2 Name=gpu File=/dev/null\n")  # declared: nothing computes on it
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    environment = inherited | {
        "PATH": path,
        "HOME": str(folder / "home"),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "OMP_NUM_THREADS": "1",
    }
    files = (f"--{name}={folder}/munge.{name}" for name in ("key-file", "socket", "pid-file", "log-file", "seed-file"))
    munged = ["munged", "--foreground", "--force", *files]
    made = Slurm(environment)
    daemons = []
    log = folder / "daemons.log"
    with log.open("w") as output:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True))
            if command is munged:
                wait_for((folder / "munge.socket").exists, told=log.read_text)
    try:
        wait_for(made.is_idle, told=log.read_text)
        yield made
        made.say("scancel", "--user=root")
        wait_for(lambda: not made.say("squeue", "--noheader"), told=log.read_text)
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE)


@pytest.mark.slow
def test_a_study_goes_on_through_the_end_of_its_time_and_a_requeue(slurm: Slurm, tmp_path: Path) -> None:
    log, storage = tmp_path / "job.log", tmp_path / "storage"
    job = slurm.say(
        *("sbatch", "--parsable", "--cpus-per-task=1", f"--output={log}", str(CLUSTER / "slurm" / "study.sbatch")),
        *(str(STUDY), "--storage", str(storage), "--num-trials", "1", "--trial.regulation.epochs", "30"),
        *("--resources.gpus-per-trial", "0"),
    ).strip()

    def up(start: int) -> None:
        is_up = f"start {start}: 2 of 2 nodes"
        wait_for(lambda: log.exists() and is_up in log.read_text(), told=lambda: slurm.say("squeue"))

    def begun(start: int) -> None:
        runs = storage / "tiny" / "records" / "runs.parquet"
        wait_for(lambda: runs.exists() and pq.read_metadata(runs).num_rows == start + 1, told=log.read_text)
        wait_for(lambda: any((storage / "tiny" / "trials").glob("*/*")), told=log.read_text)

    def queued_again(restarts: int) -> None:
        wait_for(lambda: slurm.state(job)["JobState"] == "PENDING", told=log.read_text)
        assert slurm.state(job)["Restarts"] == str(restarts)
        wait_for(slurm.is_idle, told=log.read_text)
        slurm.say("scontrol", "update", f"JobId={job}", "StartTime=now+3")  # Slurm itself would wait two minutes

    up(0)
    token = Path(slurm.environment["HOME"]) / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    (address,) = re.findall(r"nodes at (\S+)", log.read_text())
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token.read_text()}
    assert "/2.0 GPU" in Slurm(slurm.environment | with_token).say("ray", "status", "--address", address)
    refused = Slurm(slurm.environment | with_token | {"RAY_AUTH_TOKEN": "0" * 64}).say("ray", "status", "--address", address)
    assert "GPU" not in refused

    begun(0)
    slurm.say("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the end of its time
    queued_again(1)
    assert "study ended with 130" in log.read_text()
    assert list(Path("/tmp").glob(f"ray-{job}-*")) == []

    up(1)
    begun(1)
    slurm.say("scontrol", "requeue", job)  # every process is told at once, then killed
    queued_again(2)
    for folder in Path("/tmp").glob(f"ray-{job}-*"):  # what nodes leave that are killed
        shutil.rmtree(folder)

    wait_for(lambda: slurm.state(job)["JobState"] == "COMPLETED", told=log.read_text)
    text = log.read_text()
    assert text.count("study ended with 0") == 1
    assert token.read_text() not in text
    rows = trials(storage)
    assert sorted((str(row["role"]), str(row["status"])) for row in rows.values()) == [
        ("control", "finished"),
        ("control", "finished"),
        ("search", "finished"),
    ]
    runs = pq.read_table(storage / "tiny" / "records" / "runs.parquet").to_pylist()
    assert [run["ending"] for run in runs] == ["interrupted", None, "whole"]
    assert runs[0]["slots"] == 2
    print(text)  # pytest -s shows it
