"""What a confirmation can expect to see, before it opens the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from emoreg.errors import ConfigError
from emoreg.results.ladder import climb
from emoreg.results.plan import Rival
from emoreg.results.power import (
    MOST_SEEDS,
    Prospect,
    Spread,
    paired_spread,
    refuse_underpowered,
    rungs_of,
    seeds_enough,
)
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import Comparison
from tests.helpers.studies import ended
from tests.helpers.trials import TINY

ALL = ("plain", "compute_matched", "untrained", "shuffled", "neutral")


def controls(**accuracies: tuple[float, ...]) -> list[TrialRecord]:
    """Finished controls, by seed from 0."""
    return [
        dataclasses.replace(
            ended(dataclasses.replace(TINY, control="regulated", seed=seed), role="control", accuracy=accuracy), control=control
        )
        for control, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]


def prospect(effect: float = 1.0, *, rungs: Sequence[int] = (1,) * 5, num_ladders: int = 2) -> Prospect:
    return Prospect(name="resnet", spread=Spread(1.0, 2.0, 3), effect=effect, rungs=rungs, num_ladders=num_ladders)


def test_the_spread_is_that_of_gains_paired_by_seed() -> None:
    rows = controls(regulated=(0.5, 0.6, 0.7), plain=(0.48, 0.56, 0.69), shuffled=(0.5, 0.6, 0.7), emotional=(0.9, 0.1, 0.5))
    found = paired_spread(rows, TINY.backbone)
    assert found is not None
    assert found.deviation == pytest.approx(np.sqrt(np.var([2, 4, 1], ddof=1) / 2)), "emotional is on no rung"
    assert (found.n, found.upper / found.deviation) == (3, pytest.approx(np.sqrt(2 / stats.chi2.ppf(0.2, 2))))


def test_one_seed_has_no_spread() -> None:
    assert paired_spread(controls(regulated=(0.5,), plain=(0.4,)), TINY.backbone) is None
    assert paired_spread(controls(regulated=(0.5, 0.6), plain=(0.4, 0.3)), "another") is None


def test_what_can_be_climbed_ends_with_the_first_rung_without_a_control() -> None:
    assert rungs_of(ALL) == [1, 1, 1, 1, 1]
    assert rungs_of(("regulated", "plain", "compute_matched", "wide", "shuffled")) == [1, 2]
    assert rungs_of(("emotional",)) == []
    assert rungs_of(("plain", "untrained", "compute_matched", "plain")) == [2, 1, 1], "a control at the two best of its search"


def test_the_power_of_one_rung_is_the_t_test_s() -> None:
    """By the noncentral t distribution."""
    n, size = 10, 1.0
    exact = stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, size * np.sqrt(n))
    assert prospect(size, rungs=[1], num_ladders=1).power(n) == [pytest.approx(exact, abs=0.02)]


def test_a_higher_rung_is_reached_less_often() -> None:
    power = prospect(rungs=[1, 2, 1]).power(10)
    assert power == sorted(power, reverse=True)
    assert power[0] > prospect(rungs=[1], num_ladders=4).power(10)[0]


def test_seeds_are_counted_by_the_upper_limit() -> None:
    found = prospect()
    enough = seeds_enough([found])
    assert enough == found.seeds(2.0)
    assert found.power(enough, 2.0)[-1] >= 0.8 > found.power(enough - 3, 2.0)[-1]
    assert (found.seeds(1.0) or 0) < enough


def test_seeds_are_counted_up_to_a_cap() -> None:
    hopeless = prospect(effect=0.1)
    assert hopeless.seeds(1.0) is None
    assert seeds_enough([hopeless]) == MOST_SEEDS


def test_without_a_spread_seeds_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match="Give --seeds a number, or run controls on several seeds first"):
        seeds_enough([])


def test_what_cannot_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Give --seeds 3 or more, or --underpowered .*, but there are 2"):
        refuse_underpowered([], 2)
    refuse_underpowered([], 3)
    refuse_underpowered([prospect(effect=0.1), prospect()], 10)
    with pytest.raises(ConfigError, match=r"Give more --seeds .* on 10 seeds its chance is [1-9] % at best"):
        refuse_underpowered([prospect(effect=0.3)], 10)


@pytest.mark.slow
@pytest.mark.parametrize("n", [7, 10, 15])
def test_rungs_are_reached_as_often_as_printed(n: int) -> None:
    """Of two backbones, the first of which is 1 point above every control, with gains of standard deviation 1."""
    random = np.random.default_rng(n)
    luck = random.standard_normal((2000, 2, 1, n)) + random.standard_normal((2000, 2, 5, n))
    gains = luck / np.sqrt(2) + np.array([1.0, 0.0])[:, None, None]
    heights = []
    for confirmation in gains / 100:
        ladders = {
            key: {Rival(control): Comparison(dict(enumerate(row))) for control, row in zip(ALL, rows, strict=True)}
            for key, rows in enumerate(confirmation)
        }
        heights.append(climb(ladders)[0].height)
    reached = [float(np.mean([height >= rung for height in heights])) for rung in range(1, 6)]
    assert reached == pytest.approx(prospect().power(n), abs=0.03)
