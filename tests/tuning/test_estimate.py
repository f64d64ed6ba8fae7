from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from emoreg.config import Choice, ExperienceConfig, Float, Int, ResourcesConfig, SamplerConfig, SchedulerConfig, TrialResources
from emoreg.data import ImageSet, Split, load
from emoreg.errors import ConfigError
from emoreg.tuning import estimate
from emoreg.tuning.estimate import Cost, estimate_cost
from emoreg.tuning.machine import MachineShare, machine_share
from emoreg.tuning.scheduling import shares_at_chance
from tests.helpers import trials
from tests.helpers.studies import tiny_study
from tests.helpers.trials import CPU, TINY, run, tiny
from tests.helpers.waiting import PATIENCE


def cost(storage: Path, **changes: Any) -> Cost:
    return estimate_cost(tiny_study(**changes), CPU, storage)


def held_out(storage: Path) -> int:
    """How many images of the task are for validation."""
    return round(len(load(TINY.task, image_size=16, storage=storage).train) * TINY.task.validation_fraction)


@pytest.fixture
def one_image_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured, made known: the sums can be done by hand."""
    monkeypatch.setattr(estimate, "_seconds_per_image", lambda *_: 1.0)


@pytest.mark.usefixtures("one_image_a_second")
def test_the_sum_by_hand(storage: Path) -> None:
    # task: 20 images and 29 of validation (0.02 of 1437) at a third; stimuli: 16 images.
    epoch = 20 + held_out(storage) / 3
    plain, regulation = 2 * epoch, 16 + 2 * 2 * epoch
    point = Choice((0.5,))
    searched = cost(storage, search_space={"regulation.balance": point}, controls=(), num_trials=3)
    assert searched.device_seconds == pytest.approx(3 * regulation)
    both = cost(storage, search_space={"regulation.balance": point}, control_seeds=(0, 1), num_trials=3)
    assert both.device_seconds == pytest.approx(3 * regulation + 2 * (regulation + plain))
    assert (both.num_search, both.num_controls) == (3, 4)
    longer = cost(storage, search_space={"pretraining.epochs": Choice((4,))}, controls=(), num_trials=1)
    assert longer.device_seconds == pytest.approx(regulation + 3 * 16)
    cooled = cost(storage, search_space={"pretraining.cooldown_epochs": Choice((2,))}, controls=(), num_trials=1)
    assert cooled.device_seconds == cooled.expected_seconds == pytest.approx(regulation + 2 * 16)


@pytest.mark.usefixtures("one_image_a_second")
def test_pretraining_is_counted_once_where_it_is_shared(storage: Path) -> None:
    epoch = 20 + held_out(storage) / 3
    regulation = 2 * 2 * epoch
    two_lengths: Any = {"search_space": {"pretraining.epochs": Choice((1, 4))}, "num_trials": 20, "controls": ()}
    found = cost(storage, **two_lengths)
    assert found.expected_seconds == pytest.approx(20 * regulation + 4 * 16), "the longer one continues the shorter one"
    assert found.device_seconds > found.expected_seconds
    cooled = cost(storage, **two_lengths, trial=tiny(pretraining__cooldown_epochs=2))
    assert cooled.expected_seconds == pytest.approx(20 * regulation + (4 + 2 * 2) * 16), "each length has a cool-down"
    several = cost(storage, **two_lengths, seeds_per_trial=3)
    assert several.expected_seconds == pytest.approx(3 * found.expected_seconds), "seeds share nothing"
    alone = cost(storage, **two_lengths, experience=ExperienceConfig(share=False))
    assert alone.expected_seconds == pytest.approx(alone.device_seconds, rel=0.3)  # as the lengths were drawn
    rates = {"pretraining.optimizer.learning_rate": Float(1e-4, 1e-2, log=True)}
    apart = cost(storage, search_space=rates, num_trials=200, controls=())
    assert apart.expected_seconds == pytest.approx(apart.device_seconds), "more trials than are drawn share no more"


@pytest.mark.usefixtures("one_image_a_second")
def test_as_many_trials_are_stopped_early_as_by_chance(storage: Path) -> None:
    search: Any = {"search_space": {"regulation.balance": Choice((0.25, 0.5))}, "num_trials": 40}
    trial = tiny(regulation__epochs=9, pretraining__epochs=0)
    whole = cost(storage, **search, trial=trial)
    scheduler = SchedulerConfig(name="asha", grace_epochs=3, reduction_factor=3)
    stopped = cost(storage, **search, trial=trial, scheduler=scheduler)
    assert whole.expected_seconds == whole.device_seconds == stopped.device_seconds
    controls = cost(storage, trial=trial, num_trials=0).expected_seconds
    assert controls > 0, "which are never stopped"
    shares = shares_at_chance(tiny_study(scheduler=scheduler), [trial] * 40)
    expected = controls + fmean(shares) * (whole.expected_seconds - controls)
    assert stopped.expected_seconds == pytest.approx(expected)
    assert stopped.wall_seconds < whole.wall_seconds


@pytest.mark.usefixtures("one_image_a_second")
def test_a_frozen_encoder_costs_its_forward_pass(storage: Path) -> None:
    space: Any = {"search_space": {"regulation.balance": Choice((0.5,))}, "controls": (), "num_trials": 1}
    frozen = cost(storage, trial=tiny(regulation__freeze_emotional=True), **space)
    assert frozen.device_seconds == pytest.approx(16 + 2 * (20 * 4 / 3 + 2 * held_out(storage) / 3))


def test_each_width_is_measured(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_seconds_per_image", lambda config, *_: {1: 1.0, 2: 3.5}[config.width])
    plain, wide = (cost(storage, controls=(control,), num_trials=0) for control in ("plain", "wide"))
    assert wide.device_seconds == pytest.approx(3.5 * plain.device_seconds)
    assert plain.seconds_per_image == {("test_resnet", 1): 1.0}
    assert wide.seconds_per_image == {("test_resnet", 1): 1.0, ("test_resnet", 2): 3.5}


def test_a_step_is_measured_while_others_train_beside_it(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)

    def stepper(*_: object) -> Callable[[], float]:
        is_warm = False

        def step() -> float:
            nonlocal is_warm
            if is_warm:
                together.wait(PATIENCE)  # which one alone would wait for
            is_warm = True
            return 0.5

        return step

    monkeypatch.setattr(estimate, "stepper", stepper)
    monkeypatch.setattr(estimate, "machine_share", lambda: MachineShare(cpus=2, memory=2**33))
    found = cost(storage, num_trials=0, resources=ResourcesConfig(cpus_per_trial=1.0))
    assert found.concurrency == 2
    assert found.seconds_per_image == {("test_resnet", 1): 0.5 / TINY.regulation.batch_size}


def test_a_wide_step_takes_longer(storage: Path) -> None:
    found = cost(storage, controls=("wide",), num_trials=0, trial=tiny(image_size=32)).seconds_per_image
    assert found["test_resnet", 2] > found["test_resnet", 1]


@pytest.mark.parametrize(("seconds", "slots", "expected"), [([5.0, 1.0, 1.0, 1.0], 2, 5.0), ([1.0] * 3, 2, 2.0), ([], 4, 0.0)])
def test_a_trial_begins_where_a_slot_becomes_free(seconds: list[float], slots: int, expected: float) -> None:
    assert estimate._makespan(seconds, slots) == expected


@pytest.mark.usefixtures("one_image_a_second")
def test_draws_are_spread_as_the_search_spreads_them(storage: Path) -> None:
    def mean_epochs(distribution: Any) -> float:
        base = cost(storage, search_space={"pretraining.epochs": Int(0, 0)}, controls=(), num_trials=1).device_seconds
        one = cost(storage, search_space={"pretraining.epochs": distribution}, controls=(), num_trials=1)
        return (one.device_seconds - base) / 16

    assert mean_epochs(Int(1, 1000, log=True)) == pytest.approx(145, rel=0.5)  # (1000 - 1) / ln 1000
    assert mean_epochs(Int(0, 1000, step=10)) == pytest.approx(500, rel=0.25)


@pytest.mark.usefixtures("one_image_a_second")
def test_a_grid_costs_no_more_than_it_has(storage: Path) -> None:
    space = {"regulation.balance": Float(0.0, 1.0, step=0.5)}
    assert cost(storage, search_space=space, sampler=SamplerConfig(name="grid"), num_trials=50).num_search == 3


@pytest.mark.usefixtures("one_image_a_second")
def test_invalid_combinations_are_left_out_and_nothing_but_them_is_refused(storage: Path) -> None:
    forms = {"regulation.form": Choice(("output", "loss")), "regulation.mix_space": Choice(("probabilities", "logits"))}
    assert cost(storage, search_space=forms).device_seconds > 0
    study = tiny_study(search_space=forms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "replace_paths", _refuse)
        with pytest.raises(ConfigError, match=r"Narrow the ranges.*must hold valid configurations, .* by no such thing"):
            estimate_cost(study, CPU, storage)


def _refuse(*_: object) -> None:
    raise ConfigError("no such thing")


def test_trials_share_the_machine(storage: Path) -> None:
    cores = machine_share().cpus
    assert cost(storage).concurrency == cores
    half = machine_share().resources["memory"] / 2 / 2**30
    assert cost(storage, resources=ResourcesConfig(cpus_per_trial=0.001, memory_gib_per_trial=half)).concurrency == 2
    assert cost(storage, resources=ResourcesConfig(cpus_per_trial=2 * cores)).concurrency == 1
    greater = {"test_resnet": TrialResources(cpus=2 * cores)}
    assert cost(storage, resources_by_backbone=greater).concurrency == 1
    capped = cost(storage, resources=ResourcesConfig(cpus_per_trial=0.5, max_concurrent=1))
    assert capped.concurrency == 1
    num_trials, beside = capped.num_search + capped.num_controls, estimate._BESIDE_SECONDS
    assert capped.wall_seconds == pytest.approx(estimate._START_SECONDS + capped.expected_seconds + num_trials * beside)
    assert torch.get_num_threads() >= 1


def test_the_estimate_is_near_what_a_trial_takes(storage: Path) -> None:
    config = tiny(pretraining__epochs=3, regulation__epochs=4)
    run(tiny(seed=3), storage)  # what is slow only once
    result, _, _ = run(config, storage)
    expected = cost(
        storage, trial=config, search_space={"regulation.balance": Choice((0.5,))}, num_trials=1, controls=()
    ).device_seconds
    assert 0.1 < expected / result.device_seconds < 10


class _Closed(Split):
    """Stands where a test split stood: any use of it fails."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("images", "targets", "take"):
            raise AssertionError(f"the test split was opened: {name}")
        return super().__getattribute__(name)


def load_closed(*args: Any, **kwargs: Any) -> ImageSet:
    image_set = load(*args, **kwargs)
    object.__setattr__(image_set, "test", _Closed(images=image_set.test.images, targets=image_set.test.targets))
    return image_set


def test_neither_the_estimate_nor_a_trial_opens_the_test_split(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "load", load_closed)
    monkeypatch.setattr(trials, "load", load_closed)
    assert cost(storage).device_seconds > 0
    run(TINY, storage)
    with pytest.raises(AssertionError, match="the test split was opened"):
        run(TINY, storage, evaluate_on="test")
