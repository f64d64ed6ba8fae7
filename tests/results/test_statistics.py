from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emoreg.results.statistics import Comparison, Interval, estimate, p_above

TEN = (0.01, 0.02, 0.015, 0.03, 0.02, 0.01, 0.025, 0.02, 0.015, 0.01)


def compared(differences: tuple[float, ...] | list[float], num_rows: int = 1) -> Comparison:
    return Comparison(dict(enumerate(differences)), num_rows)


def test_estimate_is_students_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    found = estimate(values)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.7225)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((interval.low, interval.high))
    assert found.n == 4
    assert str(found) == "72.2 ± 4.4"


def test_estimate_of_two_values_by_hand() -> None:
    # t(0.975, df=1) = 12.706; s = sqrt(2) / 2 * |a - b|; s / sqrt(2) = |a - b| / 2
    assert estimate([0.4, 0.6]).half_width == pytest.approx(12.7062 * 0.1, rel=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.5]).half_width is None
    assert str(estimate([0.5])) == "50.0"


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert estimate([0.5, 0.5, 0.5]).half_width == 0.0


def test_a_comparison_is_scipy_s_paired_t_test() -> None:
    found, theirs = compared(TEN), stats.ttest_1samp(TEN, 0.0, alternative="greater")
    assert (found.n, found.mean) == (10, pytest.approx(np.mean(TEN)))
    assert found.p_better == pytest.approx(theirs.pvalue)
    assert found.p_worse == pytest.approx(1 - theirs.pvalue)
    assert found.interval == pytest.approx(stats.ttest_1samp(TEN, 0.0).confidence_interval(0.95))


def test_the_intervals_of_a_table_hold_together() -> None:
    assert compared(TEN, 12).interval == pytest.approx(stats.ttest_1samp(TEN, 0.0).confidence_interval(1 - 0.05 / 12))


def test_an_interval_inverts_the_test() -> None:
    interval = compared(TEN).interval
    assert interval is not None
    assert compared([value - interval.low for value in TEN]).p_better == pytest.approx(0.025)
    assert compared([value - interval.high for value in TEN]).p_worse == pytest.approx(0.025)


def test_the_sign_flip_test_is_scipy_s() -> None:
    mixed = [*TEN[:8], -0.005, -0.01]
    theirs = stats.permutation_test((mixed,), np.mean, permutation_type="samples", n_resamples=2**10, alternative="greater")
    assert compared(mixed).p_sign_flip == theirs.pvalue
    assert compared(TEN).p_sign_flip == 2**-10
    many = list(np.random.default_rng(0).normal(0.004, 0.01, 30))
    theirs = stats.permutation_test(
        (many,), np.mean, permutation_type="samples", n_resamples=9999, alternative="greater", rng=0
    )
    assert compared(many).p_sign_flip == pytest.approx(theirs.pvalue, abs=0.01)
    assert compared(TEN[:7]).p_sign_flip is None, "of fewer than 8 seeds"


@pytest.mark.parametrize("n", [1, 2])
def test_below_three_seeds_there_is_no_interval_and_nothing_is_shown(n: int) -> None:
    found = compared([0.3, 0.31][:n])
    assert (found.interval, found.share_interval, found.p_better, found.p_worse, found.p_as_large(0.5)) == (None, None, 1, 1, 1)


def test_how_often_one_is_above_the_other() -> None:
    found = compared([0.01] * 7 + [0.0] + [-0.01] * 2)
    assert found.share_above == 0.75
    assert compared(TEN).share_above == 1.0
    theirs = stats.binomtest(8, 10).proportion_ci(method="exact")
    assert compared([0.01] * 8 + [-0.01] * 2).share_interval == pytest.approx((theirs.low, theirs.high))
    assert compared(TEN).share_interval == Interval(pytest.approx(0.6915, abs=1e-4), 1.0)
    assert compared([-value for value in TEN]).share_interval == Interval(0.0, pytest.approx(0.3085, abs=1e-4))


def test_absence_is_two_one_sided_tests() -> None:
    near = [0.001, -0.001, 0.002, -0.002, 0.0005, 0.0]
    sides = [
        stats.ttest_1samp(near, -0.005, alternative="greater").pvalue,
        stats.ttest_1samp(near, 0.005, alternative="less").pvalue,
    ]
    assert compared(near).p_as_large(0.005) == pytest.approx(max(sides))
    assert compared(near).p_as_large(0.005) < 0.025 < compared(near).p_as_large(0.001)
    assert compared(TEN).p_as_large(0.005) > 0.9


def test_differences_that_are_equal_but_for_rounding_do_not_vary() -> None:
    found = compared([(200 + i) / 360 - (199 + i) / 360 for i in (1, 5, 9)])
    assert found.interval == pytest.approx((1 / 360, 1 / 360))
    assert (found.p_better, found.p_worse) == (0.125, 1.0), "without a spread there is no t: the sign-flip test's"
    alike = compared([0.0] * 10)
    assert (alike.p_better, alike.p_worse, alike.share_above) == (1.0, 1.0, 0.5)
    assert alike.p_as_large(0.005) == 2**-10


def test_many_tests_are_computed_at_once() -> None:
    many = np.random.default_rng(0).normal(0.2, 1.0, size=(4, 3, 9))
    assert p_above(many) == pytest.approx(stats.ttest_1samp(many, 0.0, axis=-1, alternative="greater").pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    noise = np.random.default_rng(n).normal(0.0, 0.01, size=(4000, n))
    intervals = [compared(tuple(row)).interval for row in noise]
    assert 0.93 <= np.mean([low <= 0 <= high for low, high in filter(None, intervals)]) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_intervals_of_a_table_miss_together_in_five_percent_at_most(n: int) -> None:
    random = np.random.default_rng(n)
    regulated, controls = random.normal(size=(2000, 1, n)), random.normal(size=(2000, 12, n))
    covered = [
        all(low <= 0 <= high for low, high in filter(None, (compared(tuple(row), 12).interval for row in table)))
        for table in regulated - controls
    ]
    assert np.mean(covered) >= 0.95 - 0.01
