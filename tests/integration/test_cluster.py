"""A study on a real Ray cluster of two nodes on this machine, where the lease of a trunk is an actor."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.test_study import STUDY, trials, wait_for

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]

    def add_node(self, *options: str) -> subprocess.Popen[bytes]:
        node = subprocess.Popen(
            [RAY, "start", "--num-cpus=1", *options, "--block", "--disable-usage-stats"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.nodes.append(node)
        return node

    def run(self, storage: Path, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "emoreg", "run", str(STUDY), "--storage", str(storage), "--address", self.address]
        return subprocess.Popen(
            [*command, *overrides],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def num_nodes(cluster: Cluster) -> int:
    status = subprocess.run(
        [RAY, "status", "--address", cluster.address], env=cluster.environment, capture_output=True, text=True, check=False
    )
    return len(re.findall(r"^ 1 node_", status.stdout, flags=re.MULTILINE))


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port = free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    made = Cluster(f"127.0.0.1:{port}", {**os.environ, **token, **here}, [])
    # Ray's socket paths must be short.
    head = made.add_node(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={tmp_path_factory.mktemp('r')}",
    )
    wait_for(lambda: num_nodes(made) == 1, head)
    second = made.add_node(f"--address={made.address}")
    wait_for(lambda: num_nodes(made) == 2, second)
    yield made
    for node in reversed(made.nodes):
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)


@pytest.mark.slow
def test_two_nodes_pay_once_for_an_experience(cluster: Cluster, tmp_path: Path) -> None:
    process = cluster.run(tmp_path, "--trial.pretraining.epochs", "4")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    rows = trials(tmp_path)
    assert [row["status"] for row in rows.values()] == ["finished"] * 5
    epochs = pq.read_table(tmp_path / "tiny" / "records" / "epochs.parquet").to_pylist()
    assert sorted(epoch["epoch"] for epoch in epochs if epoch["stage"] == "pretraining") == [1, 2, 3, 4]
    assert not (tmp_path / "experience" / ".locks").exists(), "leases were files, not actors"
