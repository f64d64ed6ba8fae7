"""Where trials run on real Ray clusters of several unlike nodes on this machine, whose GPUs are declared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, cluster_of
from tests.integration.test_study import wait_for

STUDY = """\
from emoreg import Choice, ResourcesConfig, SamplerConfig, Study, TrialConfig, TrialResources

study = Study("placed", num_trials=1, sampler=SamplerConfig(name="random"), controls=("regulated",), {settings})
"""
SMALL, BIG = "test_resnet", "test_efficientnet"
BOTH = f'search_space={{"backbone": Choice(("{SMALL}", "{BIG}"))}}'
Places = list[dict[str, Any]]
Start = Callable[..., Cluster]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a cluster, given each node's options."""
    with ExitStack() as stack:
        yield lambda *nodes: stack.enter_context(cluster_of(tmp_path_factory.mktemp("r"), *nodes))


def run(cluster: Cluster, folder: Path, settings: str) -> subprocess.Popen[bytes]:
    study = folder / "placed_study.py"
    study.write_text(STUDY.format(settings=settings))
    (folder / "places").mkdir()
    module = [sys.executable, "-m", "tests.integration.held_places", str(folder / "places")]
    process = subprocess.Popen(
        [*module, str(study), "--storage", str(folder / "runs"), "--address", cluster.address, *TINY],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    cluster.nodes.append(process)  # ended first, if the test leaves it
    return process


TINY = [
    "--experience.no-share",
    "--trial.image-size",
    "8",
    "--trial.stimuli.name",
    "digits",
    "--trial.stimuli.num-images",
    "32",
    "--trial.task.name",
    "digits",
    "--trial.task.num-images",
    "32",
]


def places(folder: Path, suffix: str = "began") -> Places:
    found = [json.loads(path.read_text()) for path in (folder / "places").glob(f"*.{suffix}")]
    return sorted(found, key=lambda place: place["began"])


def end(process: subprocess.Popen[bytes], folder: Path) -> Places:
    """Let the trials go, and say where they were, in the order in which they began."""
    (folder / "places" / "go").touch()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    return places(folder, "ended")


@pytest.mark.slow
def test_every_gpu_of_unlike_nodes_is_in_use_at_once(start: Start, tmp_path: Path) -> None:
    cluster = start("--num-cpus=2 --num-gpus=1", "--num-cpus=8 --num-gpus=4")
    settings = 'trial=TrialConfig(backbone="test_resnet"), control_seeds=tuple(range(9)), '
    settings += 'search_space={"regulation.balance": Choice((0.25, 0.75))}, resources=ResourcesConfig(gpus_per_trial=0.5)'
    process = run(cluster, tmp_path, settings)
    wait_for(lambda: len(places(tmp_path)) == 10, process, 240)
    used = Counter((place["node"], *place["gpus"]) for place in places(tmp_path))
    assert sorted(used.values()) == [2] * 5, "two trials on each of five GPUs"
    assert sorted(Counter(node for node, _ in used).values()) == [1, 4]
    assert [place["visible"] for place in places(tmp_path)] == [str(*place["gpus"]) for place in places(tmp_path)]
    assert len(end(process, tmp_path)) == 10


@pytest.mark.slow
def test_a_greater_trial_gets_its_node_while_smaller_ones_go_on_elsewhere(start: Start, tmp_path: Path) -> None:
    cluster = start("--num-cpus=2 --num-gpus=1", "--num-cpus=4 --num-gpus=2")
    settings = f"{BOTH}, control_seeds=tuple(range(8)), resources=ResourcesConfig(gpus_per_trial=1), "
    settings += f'resources_by_backbone={{"{BIG}": TrialResources(gpus=2)}}'
    process = run(cluster, tmp_path, settings)

    def begun(backbone: str) -> Places:
        return [place for place in places(tmp_path) if place["backbone"] == backbone]

    def release(place: dict[str, Any]) -> None:
        (tmp_path / "places" / f"{place['identity']}.go").touch()

    def clear_large_node() -> bool:
        for place in begun(SMALL):
            if place["gpus_of_node"] == 2:
                release(place)
        return bool(begun(BIG))

    wait_for(clear_large_node, process, 240)
    (large,) = begun(BIG)
    assert sorted(large["gpus"]) == [0, 1]
    assert large["visible"] == "0,1"

    def beside() -> Places:
        return [place for place in begun(SMALL) if place["gpus_of_node"] == 1]

    for _ in range(2):
        num_beside = len(beside())
        for place in beside():
            release(place)
        wait_for(lambda: len(beside()) > num_beside, process, 240)  # noqa: B023
    on_large = [place for place in begun(SMALL) if place["gpus_of_node"] == 2]
    assert all(place["began"] < large["began"] for place in on_large)
    assert len(begun(BIG)) == 1, "another waits, for the large node"
    assert len(begun(SMALL)) < 8, "others wait too"
    release(large)
    wait_for(lambda: len(begun(BIG)) == 2, process, 240)
    assert begun(BIG)[1]["node"] == large["node"]
    assert [place for place in begun(SMALL) if place["gpus_of_node"] == 2] == on_large, "a small one took its GPU"
    assert len(end(process, tmp_path)) == 16


@pytest.mark.slow
def test_a_kind_of_gpu_is_honoured(start: Start, tmp_path: Path) -> None:
    kind = """--num-cpus=2 --num-gpus=1 --resources={"accelerator_type:%s":1}"""
    cluster = start(kind % "T4", kind % "H100")
    settings = f"{BOTH}, control_seeds=(0, 1), resources=ResourcesConfig(accelerator_type='T4'), "
    settings += f'resources_by_backbone={{"{BIG}": TrialResources(accelerator_type="H100", memory_gib=0.25)}}'
    process = run(cluster, tmp_path, settings)
    (tmp_path / "places" / "go").touch()
    held = end(process, tmp_path)
    assert len(held) == 4
    nodes = {backbone: {place["node"] for place in held if place["backbone"] == backbone} for backbone in (SMALL, BIG)}
    assert len(nodes[SMALL]) == len(nodes[BIG]) == 1
    assert nodes[SMALL] != nodes[BIG]
    assert all(place["asked"]["memory"] == 2**28 for place in held if place["backbone"] == BIG)
