from __future__ import annotations

import pytest
from ray.tune import PlacementGroupFactory

from emoreg.config import Choice, ResourcesConfig, TrialConfig, TrialResources
from emoreg.errors import ConfigError
from emoreg.tuning.autoscaler import Autoscaler
from emoreg.tuning.placement import (
    Nodes,
    bundle,
    describe,
    may_hold,
    num_fit,
    placed,
    startable,
    table,
    wait_for_autoscaler,
)
from tests.helpers.studies import tiny_study

SMALL, BIG = TrialResources(cpus=1, gpus=1), TrialResources(cpus=1, gpus=2)
ONE = {"CPU": 8.0, "GPU": 1.0, "memory": 32.0 * 2**30, "accelerator_type:T4": 1.0}
FOUR = {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * 2**30}


def nodes(**free_gpus: tuple[float, float]) -> Nodes:
    """Nodes with their GPUs, and how many of these are free."""
    return Nodes(
        total={name: {"CPU": 8.0, "GPU": total} for name, (total, _) in free_gpus.items()},
        free={name: {"CPU": 8.0, "GPU": free} for name, (_, free) in free_gpus.items()},
    )


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
    study = tiny_study(
        search_space={"backbone": Choice(("test_resnet", "test_vit"))},
        resources=ResourcesConfig(cpus_per_trial=2, gpus_per_trial=0.5, memory_gib_per_trial=4, accelerator_type="T4"),
        resources_by_backbone={"test_vit": TrialResources(gpus=2, accelerator_type="H100")},
    )
    assert study.trial_resources("test_resnet") == TrialResources(cpus=2, gpus=0.5, memory_gib=4, accelerator_type="T4")
    assert study.trial_resources("test_vit") == TrialResources(cpus=2, gpus=2, memory_gib=4, accelerator_type="H100")
    on_cpu = tiny_study(resources=study.resources, resources_by_backbone={"test_resnet": TrialResources(gpus=0)})
    assert on_cpu.trial_resources("test_resnet").accelerator_type is None


def test_tune_is_asked_in_the_same_words_where_no_node_is_avoided() -> None:
    by_backbone = {"test_resnet": SMALL, "test_vit": BIG}
    plain = {"trial": TrialConfig(backbone="test_resnet"), "avoid": ()}
    assert placed(plain, by_backbone) == PlacementGroupFactory([{"CPU": 1.0, "GPU": 1.0}])
    assert placed({**plain, "trial": TrialConfig(backbone="test_vit")}, by_backbone).required_resources["GPU"] == 2
    away = placed({**plain, "avoid": ("a", "b")}, by_backbone)
    assert away != placed(plain, by_backbone), "Tune would give it a worker on a node that it must avoid"


def test_a_trial_is_always_given_where_none_waits() -> None:
    assert startable((SMALL, BIG), [], nodes(full=(1, 0))) == {SMALL: (), BIG: ()}


def test_equal_trials_start_side_by_side_while_there_is_room_for_more_than_those_under_way() -> None:
    assert startable((SMALL,), [SMALL], nodes(a=(4, 2))) == {SMALL: ()}
    assert startable((SMALL,), [SMALL, SMALL], nodes(a=(4, 2))) == {}
    assert startable((SMALL,), [SMALL], nodes(a=(4, 0))) == {}, "one waits, so that a free worker finds it; no more"


def test_the_node_that_a_greater_trial_waits_for_takes_no_smaller_one() -> None:
    waits = nodes(large=(4, 1), other=(2, 0), small=(1, 1))
    assert startable((SMALL, BIG), [BIG], waits) == {SMALL: ("large",)}
    assert startable((SMALL, BIG), [BIG], nodes(large=(4, 1), small=(1, 0))) == {}, "its last GPU would be the smaller one's"
    assert startable((SMALL, BIG), [BIG], nodes(small=(1, 1))) == {SMALL: ()}, (
        "no node to wait for: the autoscaler's is to come"
    )


def test_a_trial_on_its_way_to_a_place_holds_up_no_other() -> None:
    assert startable((SMALL, BIG), [SMALL], nodes(large=(4, 3), small=(1, 1))) == {SMALL: (), BIG: ()}
    assert startable((SMALL, BIG), [BIG], nodes(large=(4, 3))) == {SMALL: ()}


def test_an_autoscaler_sees_several_trials_waiting() -> None:
    full = nodes(a=(1, 0))
    assert startable((SMALL,), [SMALL] * 3, full, ahead=4) == {SMALL: ()}
    assert startable((SMALL,), [SMALL] * 4, full, ahead=4) == {}
    assert startable((SMALL, BIG), [BIG], full, ahead=4) == {BIG: ()}, "small ones have no place, and do not queue before it"


def test_what_never_fits_is_refused_with_what_there_is() -> None:
    message = (
        r"a trial of backbone 'test_vit' asks for 1 CPU, 2 GPUs and the cluster has 2 nodes with 8 CPUs, 1 GPU \(T4\), 32 GiB; "
        r"1 node with 4 CPUs: ask for less \(.*--resources.gpus-per-trial.*resources_by_backbone.*\), or add such a machine"
    )
    with pytest.raises(ConfigError, match=message):
        wait_for_autoscaler("test_vit", BIG, [ONE, {"CPU": 4.0}, ONE], None)
    smaller = Autoscaler({"worker": {"CPU": 8, "GPU": 1}})
    with pytest.raises(ConfigError, match=r"its autoscaler may start worker \(8 CPUs, 1 GPU\): ask for less"):
        wait_for_autoscaler("test_vit", BIG, [], smaller)


def test_what_the_autoscaler_may_bring_is_waited_for_and_said() -> None:
    said = wait_for_autoscaler(
        "test_vit", BIG, [ONE], Autoscaler({"worker": {"CPU": 8, "GPU": 1}, "large": {"CPU": 8, "GPU": 4}})
    )
    assert "asks for 1 CPU, 2 GPUs" in said
    assert said.endswith("it waits for the autoscaler, which may start a machine that has it (large)")


def test_a_type_of_machine_may_have_what_is_not_told() -> None:
    asked = TrialResources(cpus=1, gpus=1, memory_gib=50, accelerator_type="H100")
    assert may_hold(asked, {"CPU": 8, "GPU": 1})
    assert not may_hold(asked, {"CPU": 8})
    assert not may_hold(asked, {"CPU": 8, "GPU": 1, "accelerator_type:T4": 1})
    assert not may_hold(asked, {"CPU": 8, "GPU": 1, "memory": 2**35})


def test_machines_in_words() -> None:
    assert table([]) == "no nodes"
    assert describe({"CPU": 1.0, "GPU": 0.5, "memory": 1.5 * 2**30}) == "1 CPU, 0.5 GPU, 1.5 GiB"
    assert table([FOUR, ONE, FOUR]) == "2 nodes with 8 CPUs, 4 GPUs, 64 GiB; 1 node with 8 CPUs, 1 GPU (T4), 32 GiB"
