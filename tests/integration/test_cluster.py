"""A study on a real Ray cluster of two nodes on this machine, where the lease of a trunk is an actor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.cluster import Cluster, cluster_of
from tests.integration.test_study import trials


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_of(tmp_path_factory.mktemp("r"), "", "") as cluster:
        yield cluster


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


@pytest.mark.slow
def test_a_driver_with_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    stranger = dataclasses.replace(cluster, environment={**cluster.environment, "RAY_AUTH_TOKEN": "0" * 32})
    process = stranger.run(tmp_path)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    assert f"a client must have the cluster's token, but {cluster.address!r} refuses this one" in output
    assert "Traceback" not in output
    assert cluster.environment["RAY_AUTH_TOKEN"] not in output
