from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from emoreg.config import PretrainingConfig, RegulationConfig, schedules
from emoreg.config.schedules import length_dependence, pretraining_schedule, regulation_schedule


def test_pretraining_warms_up_and_stays_without_knowing_the_end() -> None:
    config = PretrainingConfig(warmup_steps=4)
    for num_steps in (3, 7, 100):
        factors = [pretraining_schedule(step, num_steps, config) for step in range(7)]
        assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert pretraining_schedule(0, 7, dataclasses.replace(config, warmup_steps=0)) == 1
    assert length_dependence(config) is None
    assert length_dependence(dataclasses.replace(config, warmup_steps=100_000)) is None


def test_pretraining_s_cosine_ends_near_nothing_and_is_found_to_know_the_length() -> None:
    config = PretrainingConfig(lr_schedule="cosine", warmup_steps=10)
    factors = [pretraining_schedule(step, 110, config) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert (factors[10], factors[60]) == (1, pytest.approx(0.5))
    assert 0 < factors[-1] < 1e-3
    reason = length_dependence(config)
    assert reason is not None
    assert re.fullmatch(
        r"pretraining\.lr_schedule='cosine' depends on the total length \(its factor at step 15 is 0\.99\d+ of 110 steps and "
        r"0\.99\d+ of 111 steps\), so lengths share no pre-training",
        reason,
    )
    assert length_dependence(dataclasses.replace(config, warmup_steps=100_000)) is not None


def test_a_cooldown_goes_linearly_to_nothing_from_where_the_rate_was() -> None:
    config = PretrainingConfig(epochs=3, cooldown_epochs=2, warmup_steps=4)
    factors = [pretraining_schedule(step, 25, config) for step in range(25)]  # 5 steps an epoch
    constant = dataclasses.replace(config, cooldown_epochs=0)
    assert factors[:15] == [pretraining_schedule(step, 15, constant) for step in range(15)]
    assert factors[15:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    still_warming = PretrainingConfig(epochs=1, cooldown_epochs=1, warmup_steps=9)
    factors = [pretraining_schedule(step, 10, still_warming) for step in range(10)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.48, 0.36, 0.24, 0.12])
    assert length_dependence(constant) is None
    reason = "pretraining.cooldown_epochs=2 are the last of the length, so lengths share no cool-down"
    assert length_dependence(config) == reason


@pytest.mark.parametrize("warmup", [0, 7, 5000])
def test_a_schedule_that_minds_its_length_at_the_end_alone_is_found_too(warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_step_is_slow(step: int, num_steps: int, config: PretrainingConfig) -> float:
        return 0.5 if step == num_steps - 1 else 1.0

    monkeypatch.setattr(schedules, "pretraining_schedule", last_step_is_slow)
    assert length_dependence(PretrainingConfig(warmup_steps=warmup)) is not None


def test_the_cosine_warms_up_and_ends_near_nothing() -> None:
    config = RegulationConfig(warmup_fraction=0.1)
    factors = [regulation_schedule(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_warmup_stable_decay_is_flat_then_linear() -> None:
    config = RegulationConfig(lr_schedule="warmup_stable_decay", warmup_fraction=0.1, decay_fraction=0.2)
    factors = [regulation_schedule(step, 100, config) for step in range(100)]
    assert factors[9] < 1
    assert factors[10:81] == [1] * 71
    assert factors[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    never = dataclasses.replace(config, warmup_fraction=0.0, decay_fraction=0.0)
    assert [regulation_schedule(step, 10, never) for step in range(10)] == [1] * 10


@pytest.mark.parametrize("lr_schedule", ["cosine", "warmup_stable_decay"])
def test_schedules_of_few_steps_stay_in_range(lr_schedule: Any) -> None:
    for num_steps in range(1, 12):
        for warmup in (0.0, 0.3, 0.99):
            config = RegulationConfig(lr_schedule=lr_schedule, warmup_fraction=warmup, decay_fraction=1.0)
            assert all(0 < regulation_schedule(step, num_steps, config) <= 1 for step in range(num_steps))
