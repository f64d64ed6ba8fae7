"""Ray clusters of several nodes on this machine, each a session of processes of its own, as if it were a machine."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.helpers.waiting import wait_for

BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")
RAY_START = (sys.executable, "-m", "tests.integration.patient_ray", "start")
STUDY = Path(__file__).with_name("tiny_study.py")
_JOINED = "Ray runtime started"


def wait_for_node(node: subprocess.Popen[Any], log: Path) -> None:
    """Until a node has joined its cluster."""
    wait_for(lambda: _JOINED in log.read_text(), node, told=log.read_text)


def trials(storage: Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    """The records of a study by identity."""
    with pq.ParquetFile(storage / name / "records" / "trials.parquet") as stored:  # opened once: its driver may replace it
        rows = stored.read().to_pylist()
    by_identity = {row["identity"]: row for row in rows}
    assert len(by_identity) == len(rows), "a trial is recorded twice"
    return by_identity


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Cluster:
    """A cluster; its nodes have folders of their own in ``folder``."""

    address: str
    environment: dict[str, str]
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    dashboard: str = ""

    def add_node(self, *options: str, log: Path = Path(os.devnull)) -> subprocess.Popen[bytes]:
        """Start a node, which has joined once its log says so: see ``wait_for_node``."""
        with open(log, "wb") as stream:
            node = subprocess.Popen(
                [*RAY_START, "--num-cpus=1", *options, "--block", "--disable-usage-stats"],
                env=self.environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.nodes.append(node)
        return node

    def join(self, *nodes: str) -> list[subprocess.Popen[bytes]]:
        """Add nodes with these options, one after the other, each with a folder of its own.

        In a folder that nodes share, one would remove the working directory of a job that another still runs.
        """
        joined = []
        for options in nodes:
            own = self.folder / f"n{len(self.nodes)}"
            log = self.folder / f"{own.name}.log"
            joined.append(self.add_node(f"--address={self.address}", f"--temp-dir={own}", *options.split(), log=log))
            wait_for_node(joined[-1], log)
        return joined

    def run(self, storage: Path, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "emoreg", "run", str(STUDY), "--storage", str(storage), "--address", self.address]
        return self.start(*command, *overrides)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command on this cluster's head, in a session of its own: a signal sent to it reaches nothing else."""
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def cluster_environment() -> dict[str, str]:
    """Of all processes of a new cluster: a token of its own, and this checkout."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    here = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {**os.environ, **token, **here, "RAY_worker_niceness": "0"}  # workers need no patience here


def ray_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for Ray, of a short name, which those of a test have not: the paths of its sockets must be short."""
    return tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)


@contextmanager
def cluster_of(*nodes: str, has_dashboard: bool = False, **environment: str) -> Iterator[Cluster]:
    """A cluster with token authentication, for the time of a block.

    Args:
        nodes: the options of each node, the head first.
        has_dashboard: whether jobs can be submitted to it.
        environment: of all its processes, beside this one's.
    """
    first, *others = nodes
    with ray_folder() as folder:
        cluster = Cluster(f"127.0.0.1:{free_port()}", cluster_environment() | environment, Path(folder))
        to_dashboard = ["--include-dashboard=false"]
        if has_dashboard:
            ports = {name: free_port() for name in ("port", "agent-listen-port", "agent-grpc-port")}
            cluster.dashboard = f"http://127.0.0.1:{ports['port']}"
            to_dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
            to_dashboard += [f"--dashboard-{name}={port}" for name, port in ports.items()]
        log = cluster.folder / "head.log"
        try:
            head = cluster.add_node(
                *("--head", "--node-ip-address=127.0.0.1", f"--port={cluster.address.rpartition(':')[2]}"),
                *(f"--temp-dir={folder}", *to_dashboard, *first.split()),
                log=log,
            )
            wait_for_node(head, log)
            cluster.join(*others)
            yield cluster
        finally:
            for node in cluster.nodes:  # told to leave, each would take half a minute
                if node.poll() is None:
                    lose(node)


def signal_machine(node: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to everything that runs on a node."""
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with suppress(ProcessLookupError):
            if os.getsid(pid) == node.pid:
                os.kill(pid, number)


def lose(node: subprocess.Popen[bytes]) -> None:
    """Kill -9 everything that runs on a node, as when its machine is lost: nothing there says that it ends."""
    signal_machine(node, signal.SIGSTOP)  # so that none sees another die
    signal_machine(node, signal.SIGKILL)
    node.wait()
