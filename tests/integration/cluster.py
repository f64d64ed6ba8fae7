"""Ray clusters of several nodes on this machine, each a session of processes of its own, as if it were a machine."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.test_study import STUDY, wait_for

RAY = str(Path(sys.executable).with_name("ray"))
JOINED = "Ray runtime started"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, *options: str, log: Path = Path(os.devnull)) -> subprocess.Popen[bytes]:
        """Start a node, which has joined once its log says so: see ``JOINED``."""
        with open(log, "wb") as stream:
            node = subprocess.Popen(
                [RAY, "start", "--num-cpus=1", *options, "--block", "--disable-usage-stats"],
                env=self.environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.nodes.append(node)
        return node

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
    here = {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_worker_niceness": "0"}  # workers need no patience here
    return {**os.environ, **token, **here}


@contextmanager
def cluster_of(temporary: Path, *nodes: str, **environment: str) -> Iterator[Cluster]:
    """A cluster with token authentication, for the time of a block.

    Args:
        temporary: Ray's folder, of a short name: its socket paths must be short.
        nodes: the options of each node, the head first.
        environment: of all its processes, beside this one's.
    """
    port = free_port()
    cluster = Cluster(f"127.0.0.1:{port}", cluster_environment() | environment)
    to_head = ("--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false")
    try:
        for number, options in enumerate(nodes):
            first = (*to_head, f"--temp-dir={temporary}") if number == 0 else (f"--address={cluster.address}",)
            node = cluster.add_node(*first, *options.split())
            wait_for(lambda number=number: num_nodes(cluster) == number + 1, node)  # type: ignore[misc]
        yield cluster
    finally:
        for node in cluster.nodes:  # told to leave, each would take half a minute
            if node.poll() is None:
                lose(node)


def end(node: subprocess.Popen[bytes]) -> None:
    """Let a node leave."""
    os.killpg(node.pid, signal.SIGTERM)
    node.wait(60)


def num_nodes(cluster: Cluster) -> int:
    status = subprocess.run(
        [RAY, "status", "--address", cluster.address], env=cluster.environment, capture_output=True, text=True, check=False
    )
    return len(re.findall(r"^ 1 node_", status.stdout, flags=re.MULTILINE))


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
