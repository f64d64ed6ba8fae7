from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune import PlacementGroupFactory

from emoreg.config import Choice, ResourcesConfig, StudyConfig, TrialResources
from emoreg.errors import ConfigError
from emoreg.tuning.machine import bundle, num_fit
from emoreg.tuning.placement import Placement, describe, find_launchable, may_hold, table
from tests.helpers.studies import tiny_study

SMALL, BIG = TrialResources(cpus=1, gpus=1), TrialResources(cpus=16, gpus=1)
ONE = {"CPU": 8.0, "GPU": 1.0, "memory": 32.0 * 2**30, "accelerator_type:T4": 1.0}
FOUR = {"CPU": 16.0, "GPU": 4.0, "memory": 64.0 * 2**30}
CPUS = {"CPU": 4.0}
LAUNCHED = "ray.io/node-group"


class FakeCluster:
    """The nodes that Ray tells of."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def has(self, *resources: dict[str, float], **labels: str) -> None:
        named = {LAUNCHED: labels["group"]} if labels else {}
        self.rows = [{"Alive": True, "Resources": node, "Labels": named} for node in resources]
        self.rows.append({"Alive": False, "Resources": FOUR, "Labels": {}})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCluster:
    """A cluster whose nodes the test says, looked at anew each time; nobody is at home here."""
    made = FakeCluster()
    monkeypatch.setattr(ray, "nodes", lambda: made.rows)
    monkeypatch.setattr("emoreg.tuning.placement._REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    return made


def launch(home: Path, **resources: dict[str, float] | None) -> None:
    """Leave what `ray up` leaves on the head."""
    types = {name: {"resources": kind, "max_workers": 0 if name == "head" else 2} for name, kind in resources.items()}
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps({"available_node_types": types}))


def study(*, gpus: float | None = None, max_concurrent: int | None = None, **by_backbone: TrialResources) -> StudyConfig:
    return tiny_study(
        search_space={"backbone": Choice(("test_resnet", "test_vit"))},
        resources=ResourcesConfig(gpus_per_trial=gpus, max_concurrent=max_concurrent),
        resources_by_backbone=by_backbone,
    )


def placed(config: StudyConfig) -> Placement:
    messages: list[str] = []
    placement = Placement(config, messages.append)
    assert messages == []
    return placement


def test_a_request_in_the_names_of_ray() -> None:
    asked = TrialResources(cpus=2, gpus=0.5, memory_gib=1.5, accelerator_type="H100")
    assert bundle(asked) == {"CPU": 2, "GPU": 0.5, "memory": 3 * 2**29, "accelerator_type:H100": 0.001}
    assert bundle(TrialResources(cpus=1, gpus=0)) == {"CPU": 1}


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (TrialResources(cpus=1), 8),
        (TrialResources(cpus=3), 2),
        (TrialResources(cpus=1, gpus=0.1), 8),
        (TrialResources(cpus=0.5, gpus=0.1), 10),  # 1 / 0.1 in binary is a little more or less
        (SMALL, 1),
        (BIG, 0),
        (TrialResources(cpus=1, memory_gib=12), 2),
        (TrialResources(cpus=1, gpus=0.5, accelerator_type="T4"), 2),
        (TrialResources(cpus=1, gpus=0.5, accelerator_type="H100"), 0),
    ],
)
def test_how_many_trials_a_machine_holds(asked: TrialResources, number: int) -> None:
    assert num_fit(asked, ONE) == number


def test_each_backbone_asks_for_its_own() -> None:
    config = tiny_study(
        search_space={"backbone": Choice(("test_resnet", "test_vit"))},
        resources=ResourcesConfig(cpus_per_trial=2, gpus_per_trial=0.5, memory_gib_per_trial=4, accelerator_type="T4"),
        resources_by_backbone={"test_vit": TrialResources(gpus=1, accelerator_type="H100")},
    )
    assert config.trial_resources("test_resnet") == TrialResources(cpus=2, gpus=0.5, memory_gib=4, accelerator_type="T4")
    assert config.trial_resources("test_vit") == TrialResources(cpus=2, gpus=1, memory_gib=4, accelerator_type="H100")
    on_cpu = tiny_study(resources=config.resources, resources_by_backbone={"test_resnet": TrialResources(gpus=0)})
    assert on_cpu.trial_resources("test_resnet").accelerator_type is None


def test_tune_is_asked_for_the_bundle_of_the_backbone(cluster: FakeCluster) -> None:
    cluster.has(FOUR)
    placement = placed(study(gpus=1, test_vit=BIG))
    assert placement.bundles["test_resnet"] == PlacementGroupFactory([{"CPU": 1.0, "GPU": 1.0}])
    assert placement.bundles["test_vit"].required_resources["CPU"] == 16
    assert pickle.loads(pickle.dumps(placement.bundles)) == placement.bundles, "Tune ships them"


@pytest.mark.parametrize(("nodes", "gpus"), [([CPUS], 0), ([CPUS, ONE], 1)])
def test_a_trial_gets_a_gpu_where_the_cluster_has_some(nodes: list[Any], gpus: int, cluster: FakeCluster) -> None:
    cluster.has(*nodes)
    assert placed(study()).bundles["test_vit"].required_resources.get("GPU", 0) == gpus
    assert placed(study(gpus=0)).bundles["test_vit"].required_resources.get("GPU", 0) == 0


def test_slots_are_trials_of_the_smallest_request_and_follow_the_cluster(cluster: FakeCluster) -> None:
    cluster.has(ONE, FOUR)
    placement, narrow = placed(study(gpus=1, test_vit=BIG)), placed(study(gpus=1, max_concurrent=3))
    assert (placement.slots(), narrow.slots()) == (5, 3)
    cluster.has(ONE)
    assert (placement.slots(), narrow.slots()) == (1, 1)
    cluster.has()
    assert placement.slots() == 1
    cluster.has(FOUR, FOUR)
    assert (placement.slots(), narrow.slots()) == (8, 3)


def test_what_never_fits_is_refused_with_what_there_is(cluster: FakeCluster) -> None:
    cluster.has(ONE, CPUS, ONE)
    message = (
        r"Ask for less \(.*--resources.gpus-per-trial.*resources_by_backbone.*\) or add such a machine: .* "
        r"a trial of backbone 'test_vit' asks for 16 CPUs, 1 GPU and the cluster has 2 nodes with 8 CPUs, 1 GPU \(T4\), "
        r"32 GiB; 1 node with 4 CPUs$"
    )
    with pytest.raises(ConfigError, match=message):
        placed(study(gpus=1, test_vit=BIG)).check()
    placed(study(gpus=1)).check()


def test_what_waits_is_said_and_follows_the_cluster(cluster: FakeCluster) -> None:
    cluster.has(FOUR)
    placement = placed(study(gpus=1, test_vit=BIG))
    placement.check()
    assert (placement.waiting(), placement.may_wait) == (None, 1)
    cluster.has(ONE)
    waiting = placement.waiting()
    assert waiting is not None
    assert waiting.startswith("a trial of backbone 'test_vit' asks for 16 CPUs, 1 GPU and the cluster has 1 node with 8 CPUs")
    assert waiting.endswith("such trials wait until there is a machine that can hold them")


def test_what_the_launcher_may_start_is_waited_for_and_what_it_may_not_is_refused(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.has({"CPU": 0.0}, group="head")
    launch(tmp_path, head={"CPU": 0, "GPU": 8}, worker={"CPU": 8, "GPU": 1})
    placement = placed(study(test_vit=BIG))
    assert placement.bundles["test_resnet"].required_resources["GPU"] == 1, "its workers have one"
    with pytest.raises(ConfigError, match=r"1 node with 0 CPUs, and may start worker \(8 CPUs, 1 GPU\)$"):
        placement.check()
    launch(tmp_path, head={"CPU": 0}, worker={"CPU": 8, "GPU": 1}, large={"CPU": 16, "GPU": 4})
    placement = placed(study(test_vit=BIG))
    placement.check()
    assert placement.may_wait > 1, "several wait, so that several machines start"
    waiting = placement.waiting()
    assert waiting is not None
    assert waiting.endswith("wait until the autoscaler starts a machine that can hold them")


def test_an_autoscaler_that_does_not_tell_is_waited_for(cluster: FakeCluster) -> None:
    cluster.has(CPUS, group="headgroup")  # KubeRay
    placed(study(gpus=0, test_vit=BIG)).check()
    messages: list[str] = []
    Placement(study(), messages.append)
    assert "trials run on CPUs; ask for GPUs with --resources.gpus-per-trial 1" in messages[0]


def test_which_machines_may_come(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.has(CPUS)
    assert find_launchable() is None, "started by hand"
    cluster.has(CPUS, group="worker")
    assert find_launchable() == {}
    launch(tmp_path, head={"CPU": 0}, worker=None)
    assert find_launchable() == {"worker": {}}
    cluster.has(CPUS, group="theirs")
    assert find_launchable() == {}, "the file is of another cluster"


def test_a_type_of_machine_may_have_what_is_not_told() -> None:
    asked = TrialResources(cpus=1, gpus=1, memory_gib=50, accelerator_type="H100")
    assert may_hold(asked, {})
    assert may_hold(asked, {"CPU": 8, "GPU": 1})
    assert not may_hold(asked, {"CPU": 8})


def test_machines_in_words() -> None:
    assert table([]) == "no nodes"
    assert describe({"CPU": 1.0, "GPU": 0.5, "memory": 1.5 * 2**30}) == "1 CPU, 0.5 GPU, 1.5 GiB"
    assert table([FOUR, ONE, FOUR]) == "2 nodes with 16 CPUs, 4 GPUs, 64 GiB; 1 node with 8 CPUs, 1 GPU (T4), 32 GiB"
