"""A study on a cluster with Ray's autoscaler; its machines are Ray nodes on this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.autoscaler._private.fake_multi_node import node_provider

from tests.helpers.waiting import PATIENCE
from tests.integration.cluster import Cluster, cluster_environment, free_port, lose, ray_folder, trials, wait_for_node

HEAD = "ray.head.default"
SETTINGS = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",  # what `ray up` and KubeRay set on the head
    "RAY_NODE_TYPE_NAME": HEAD,
    "RAY_CLOUD_INSTANCE_ID": node_provider.FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_provider.FAKE_HEAD_NODE_ID,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with ray_folder() as folder:
        yield Path(folder)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """A head without CPUs, and an autoscaler that may start one machine with two."""
    address = f"127.0.0.1:{free_port()}"
    # Ray's own stand-in for a cloud, whose machines are processes; under its own name it wants a file that no wheel has.
    provider = {
        "type": "external",
        "module": f"{node_provider.__name__}.FakeMultiNodeProvider",
        "gcs_address": address,
        "launch_multiple": True,
        "head_node_id": node_provider.FAKE_HEAD_NODE_ID,
    }
    config = {
        "cluster_name": "fake",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": provider,
        "auth": {},
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "pair": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": HEAD,
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path, log = folder / "ray_bootstrap_config.yaml", folder / "head.log"  # at home, as `ray up` leaves it
    path.write_text(json.dumps(config))
    cluster = Cluster(address, cluster_environment() | SETTINGS | {"HOME": str(folder)}, folder)
    head = cluster.add_node(
        "--head",
        "--num-cpus=0",
        "--node-ip-address=127.0.0.1",
        f"--port={address.rpartition(':')[2]}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
        f"--autoscaling-config={path}",
        log=log,
    )
    try:
        wait_for_node(head, log)
        yield cluster
    finally:
        lose(head)  # and what its autoscaler has started


@pytest.mark.soak
@pytest.mark.slow
def test_a_study_waits_for_the_machine_that_the_autoscaler_may_start(cluster: Cluster, tmp_path: Path) -> None:
    study = cluster.run(tmp_path, "--resources.cpus-per-trial", "2", "--num-trials", "1", "--controls", "regulated")
    output, _ = study.communicate(timeout=PATIENCE)
    assert study.returncode == 0, output
    assert "asks for 2 CPUs and the cluster has 1 node with 0 CPUs" in output
    assert "such trials wait until the autoscaler starts a machine that can hold them" in output
    assert {row["status"] for row in trials(tmp_path).values()} == {"finished"}
