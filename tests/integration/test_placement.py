"""Where trials run on a real Ray cluster of unlike nodes on this machine, whose GPUs are declared."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.cluster import Cluster, lose

pytestmark = pytest.mark.slow
TINY = Path(__file__).with_name("tiny_study.py")

STUDY = """\
from emoreg import Choice, ResourcesConfig, Study, TrialResources

study = Study("placed", search_space={{"backbone": Choice(("test_resnet", "test_efficientnet"))}}, {settings})
"""
SMALL, BIG = "test_resnet", "test_efficientnet"


@pytest.fixture(scope="module")
def unlike_nodes(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with two more nodes: one GPU of one kind, four of another."""
    kind = """--num-cpus=%d --num-gpus=%d --resources={"accelerator_type:%s":1}"""
    added = shared_cluster.join(kind % (2, 1, "T4"), kind % (8, 4, "H100"))
    yield shared_cluster
    for node in added:
        lose(node)


def held(cluster: Cluster, folder: Path, settings: str, number: int) -> tuple[list[dict[str, Any]], str]:
    """Where trials were, all at once, ``number`` of each backbone; and what was printed."""
    study, places = folder / "placed_study.py", folder / "places"
    study.write_text(STUDY.format(settings=settings))
    places.mkdir()
    module = [sys.executable, "-m", "tests.integration.held_places"]
    process = cluster.start(*module, cluster.address, str(study), str(places), str(number))
    try:
        wait_for(lambda: process.poll() is not None or len([*places.glob("*.json")]) == 2 * number, cluster.nodes[0])
    finally:
        (places / "go").touch()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return [json.loads(path.read_text()) for path in places.glob("*.json")], output


def test_every_gpu_of_unlike_nodes_is_in_use_at_once(unlike_nodes: Cluster, tmp_path: Path) -> None:
    places, output = held(unlike_nodes, tmp_path, "resources=ResourcesConfig(gpus_per_trial=0.5)", 5)
    assert "slots 10" in output
    used = Counter((place["node"], *place["gpus"]) for place in places)
    assert sorted(used.values()) == [2] * 5, "two trials on each of five GPUs"
    assert sorted(Counter(node for node, _ in used).values()) == [1, 4]
    assert [place["visible"] for place in places] == [str(*place["gpus"]) for place in places]


def test_each_backbone_gets_what_it_asks_for(unlike_nodes: Cluster, tmp_path: Path) -> None:
    settings = "resources=ResourcesConfig(accelerator_type='T4', gpus_per_trial=0.5), "
    settings += f'resources_by_backbone={{"{BIG}": TrialResources(gpus=1, accelerator_type="H100", memory_gib=0.25)}}'
    places, _ = held(unlike_nodes, tmp_path, settings, 2)
    nodes = {backbone: {place["node"] for place in places if place["backbone"] == backbone} for backbone in (SMALL, BIG)}
    assert len(nodes[SMALL]) == len(nodes[BIG]) == 1
    assert nodes[SMALL] != nodes[BIG]
    big = [place for place in places if place["backbone"] == BIG]
    assert len({gpu for place in big for gpu in place["gpus"]}) == 2
    assert all(place["asked"]["memory"] == 2**28 for place in big)


def test_gpus_that_are_not_there_are_refused_at_the_start(unlike_nodes: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emoreg", "run", str(TINY), "--storage", str(tmp_path), "--address", unlike_nodes.address]
    process = unlike_nodes.start(*command, "--resources.gpus-per-trial", "1")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, output
    assert "emoreg: Install a CUDA build of torch there, or start these machines with --num-gpus=0" in output
    assert re.search(r"it gives away (1 on \S+, 4|4 on \S+, 1) on \S+, where torch sees none", output)
    assert not (tmp_path / "tiny" / "records" / "trials.parquet").exists()
