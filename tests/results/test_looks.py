"""Two looks: what a p-value at either of them is worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from emoreg.errors import ConfigError
from emoreg.results.looks import Look
from emoreg.results.power import Prospect, Spread, looks_of
from emoreg.results.statistics import Comparison

HALF = Look(0.5, is_first=True), Look(0.5)


def test_the_bounds_are_those_of_the_tables() -> None:
    """O'Brien and Fleming's for two looks of 5 %, two-sided: 2.797 and 1.977 (Jennison and Turnbull 2000, table 2.3)."""
    assert [stats.norm.isf(look.nominal(0.025)) for look in HALF] == [
        pytest.approx(2.797, abs=1e-3),
        pytest.approx(1.977, abs=1e-3),
    ]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6])
def test_the_level_is_the_chance_to_pass_either_bound(share: float) -> None:
    first, last = Look(share, is_first=True), Look(share)
    z = [stats.norm.isf(look.nominal(0.025)) for look in (first, last)]
    both_below = stats.multivariate_normal([0, 0], [[1, share**0.5], [share**0.5, 1]]).cdf(z)
    assert 1 - both_below == pytest.approx(0.025, abs=1e-5)
    for look in (first, last):
        assert float(look.repeated(look.nominal(0.01))) == pytest.approx(0.01)


def test_a_single_look_leaves_p_values_as_they_are() -> None:
    assert Look().repeated(0.0123) == Look().nominal(0.0123) == 0.0123


def test_p_values_and_intervals_at_a_look_agree() -> None:
    """The interval of a row alone leaves nought out where one of its two tests has half of the 5 %."""
    gains = dict(enumerate(np.random.default_rng(2).normal(0.6, 1.0, size=6)))
    for look in HALF:
        found = Comparison(gains, look=look)
        alone = Comparison(gains)
        assert found.p_better > alone.p_better
        assert found.interval is not None
        at_end = dataclasses.replace(found, by_seed={seed: gain - found.interval.low for seed, gain in gains.items()})
        assert at_end.p_better == pytest.approx(0.025)
        assert found.share_interval is not None
        assert alone.share_interval is not None
        assert found.share_interval.low < alone.share_interval.low


def test_where_every_seed_is_alike_either_look_can_tell() -> None:
    found = Comparison(dict.fromkeys(range(6), 0.0), look=HALF[0])
    assert (found.p_better, found.p_worse) == (1.0, 1.0)


def test_two_looks_take_the_seeds_of_two_looks() -> None:
    assert looks_of(1, 2) == ()
    assert (looks_of(2, 5), looks_of(2, 10)) == ((3, 5), (5, 10))
    with pytest.raises(ConfigError, match=r"Give --seeds 5 or more, or leave out --looks: .* but the first half of 4 has 2"):
        looks_of(2, 4)


def test_two_looks_cost_little_power() -> None:
    found = Prospect(name="resnet", spread=Spread(1.0, 2.0, 3), effect=1.0, rungs=[1, 1], num_ladders=1)
    powers = [dataclasses.replace(found, num_looks=looks).power(12)[-1] for looks in (1, 2)]
    assert powers[0] - 0.03 < powers[1] <= powers[0]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "n"), [(3, 5), (5, 10), (10, 20)])
def test_intervals_of_both_looks_together_cover_the_truth(first: int, n: int) -> None:
    noise = np.random.default_rng(n).normal(0.0, 0.01, size=(4000, n))
    looks = (first, Look(first / n, is_first=True)), (n, Look(first / n))
    covered = [
        all(
            found.low <= 0 <= found.high
            for seeds, look in looks
            if (found := Comparison(dict(enumerate(row[:seeds])), look=look).interval) is not None
        )
        for row in noise
    ]
    assert 0.93 <= np.mean(covered) <= 0.97
