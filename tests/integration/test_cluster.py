"""A driver on a machine of a real Ray cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.helpers.waiting import PATIENCE
from tests.integration.cluster import Cluster


@pytest.mark.slow
def test_a_driver_with_a_wrong_token_is_refused(shared_cluster: Cluster, tmp_path: Path) -> None:
    stranger = dataclasses.replace(shared_cluster, environment={**shared_cluster.environment, "RAY_AUTH_TOKEN": "0" * 32})
    process = stranger.run(tmp_path)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, output
    assert f"a client must have the cluster's token, but {shared_cluster.address!r} refuses this one" in output
    assert "Traceback" not in output
    assert shared_cluster.environment["RAY_AUTH_TOKEN"] not in output
