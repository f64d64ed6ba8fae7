from __future__ import annotations

from statistics import fmean

import pytest

from emoreg.config import SchedulerConfig, StudyConfig
from emoreg.tuning.scheduling import shares_at_chance
from tests.helpers.studies import tiny_study
from tests.helpers.trials import tiny

TEN_EPOCHS = tiny(regulation__epochs=10)


def study(name: str) -> StudyConfig:
    return tiny_study(scheduler=SchedulerConfig(name=name, grace_epochs=3, reduction_factor=3))


def test_without_a_scheduler_every_trial_runs_to_its_end() -> None:
    assert shares_at_chance(study("none"), [TEN_EPOCHS] * 3) == [1.0] * 3


def test_a_study_without_a_search_stops_none() -> None:
    assert shares_at_chance(study("asha"), []) == []


def test_asha_keeps_one_in_three_at_each_rung_and_whoever_comes_first() -> None:
    shares = shares_at_chance(study("asha"), [TEN_EPOCHS] * 100)
    assert shares[0] == 1.0, "there is nothing to compare it with"
    by_hand = 2 / 3 * 3 + 1 / 3 * (2 / 3 * 9 + 1 / 3 * 10)  # rungs at 3 and 9 of 10 epochs
    assert fmean(shares[50:]) == pytest.approx(by_hand / 10, abs=0.05)


def test_the_median_stops_less_than_half_at_first_and_none_before_three_others() -> None:
    shares = shares_at_chance(study("median"), [TEN_EPOCHS] * 40)
    assert shares[:3] == [1.0] * 3
    assert 0.3 < fmean(shares[20:]) < 0.8


def test_trials_are_drawn_among_their_peers() -> None:
    other = tiny(backbone="test_vit", regulation__epochs=10)
    longer = tiny(regulation__epochs=20)
    shares = shares_at_chance(study("asha"), [TEN_EPOCHS, other, longer] * 3)
    assert shares[:3] == [1.0] * 3
    assert all(share < 1.0 for share in shares[3:])


def test_of_a_long_search_the_first_trials_tell_of_the_others() -> None:
    shares = shares_at_chance(study("asha"), [TEN_EPOCHS] * 1_000)
    assert shares[100:] == [fmean(shares[50:100])] * 900
