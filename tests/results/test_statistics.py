from __future__ import annotations

import dataclasses
import gc
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from emoreg.errors import ConfigError
from emoreg.results.statistics import REQUIRED, Comparison, Decision, compare, fewest_seeds, judge, visible_effect

TEN = (0.01, 0.02, 0.015, 0.03, 0.02, 0.01, 0.025, 0.02, 0.015, 0.01)
FAMILY = [(backbone, control) for backbone in ("resnet", "vit") for control in REQUIRED]


def seen(difference: float, adjusted: float, visible: float = 0.01) -> Comparison:
    return Comparison(
        n=10,
        difference=difference,
        low=difference - 0.01,
        high=difference + 0.01,
        p_value=adjusted,
        adjusted=adjusted,
        effect_size=1.0,
        visible=visible,
    )


BETTER, SAME, WORSE = seen(0.02, 0.01), seen(0.001, 0.8), seen(-0.02, 0.01)


def test_a_comparison_of_ten_seeds() -> None:
    found = compare({"plain": TEN})["plain"]
    assert found.n == 10
    assert found.difference == pytest.approx(np.mean(TEN))
    assert found.p_value == pytest.approx(2 / 2**10), "all signs alike: two of the 1,024 are as extreme"
    assert found.effect_size == pytest.approx(np.mean(TEN) / np.std(TEN, ddof=1))
    assert found.low is not None
    assert found.high is not None
    assert min(TEN) < found.low < found.difference < found.high < max(TEN)
    assert found.is_better
    assert not found.is_worse


def test_the_other_way_round_is_worse() -> None:
    found = compare({"plain": [-value for value in TEN]})["plain"]
    assert found.is_worse
    assert not found.is_better


def test_holm_s_correction_is_over_the_family() -> None:
    mixed = (0.02, -0.01, 0.015, 0.01, -0.02, 0.01, 0.025, 0.02, 0.015, -0.03)
    alone = {key: compare({key: values})[key].p_value for key, values in (("a", TEN), ("b", mixed), ("c", TEN[::-1]))}
    found = compare({"a": TEN, "b": mixed, "c": TEN[::-1]})
    assert {key: comparison.p_value for key, comparison in found.items()} == alone
    assert found["a"].adjusted == pytest.approx(3 * alone["a"])
    assert found["c"].adjusted == pytest.approx(3 * alone["c"]), "never below a smaller one's"
    assert found["b"].adjusted == pytest.approx(alone["b"])


def test_no_difference_at_all() -> None:
    found = compare({"plain": (0.0, 0.0, 0.0)})["plain"]
    assert (found.difference, found.low, found.high, found.adjusted, found.effect_size) == (0.0, 0.0, 0.0, 1.0, None)


def test_one_seed_shows_nothing() -> None:
    found = compare({"plain": (0.3,)})["plain"]
    assert (found.low, found.high, found.effect_size, found.adjusted) == (None, None, None, 1.0)
    assert math.isinf(found.visible)


def test_a_comparison_without_seeds_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs seeds that both sides ran, but 'plain' has none"):
        compare({"plain": ()})


@pytest.mark.parametrize(("num_comparisons", "seeds"), [(1, 6), (3, 7), (6, 8), (12, 9)])
def test_fewer_seeds_could_not_show_the_largest_effect(num_comparisons: int, seeds: int) -> None:
    assert fewest_seeds(num_comparisons) == seeds
    for n, is_visible in ((seeds - 1, False), (seeds, True)):
        found = compare(
            {number: [0.5 + 0.01 * seed for seed in range(n)] for number in range(num_comparisons)}, num_resamples=99
        )
        assert found[0].is_better == is_visible
        assert math.isfinite(found[0].visible) == is_visible


@pytest.mark.parametrize(
    ("comparisons", "decision", "sentence"),
    [
        (
            (BETTER, BETTER, BETTER),
            "helps",
            r"resnet: helps: \+2\.0 points \[\+1\.0, \+3\.0\] \(n = 10, p = 0\.01\) over plain, ",
        ),
        (
            (BETTER, SAME, BETTER),
            "no difference seen",
            r"beats plain and shuffled, but no difference seen to untrained \(n = 10; effects ab",
        ),
        (
            (SAME, SAME, SAME),
            "no difference seen",
            r"to plain, untrained and shuffled \(n = 10; effects above 1\.0 points would have been, four times in five\)",
        ),
        (
            (SAME, WORSE, SAME),
            "harms",
            r"harms: -2\.0 points \[-3\.0, -1\.0\] \(n = 10, p = 0\.01\) against untrained$",
        ),
        ((WORSE, BETTER, BETTER), "harms", r"resnet: beats untrained and shuffled, but harms: -2\.0 points .* against plain$"),
    ],
)
def test_a_verdict(comparisons: tuple[Comparison, ...], decision: str, sentence: str) -> None:
    verdict = judge("resnet", dict(zip(REQUIRED, comparisons, strict=True)))
    assert verdict.decision == decision
    assert re.search(sentence, verdict.sentence), verdict.sentence


def test_without_a_control_nothing_helps() -> None:
    verdict = judge("resnet", {"plain": BETTER, "shuffled": BETTER})
    assert verdict.decision == Decision.NOTHING
    assert verdict.sentence == "resnet: nothing can be said: no trial of untrained has finished on these seeds"


@pytest.mark.parametrize("others", [BETTER, SAME, WORSE])
def test_what_is_better_than_regulation_stands_beside_every_verdict(others: Comparison) -> None:
    verdict = judge("resnet", dict.fromkeys(REQUIRED, others) | {"compute_matched": WORSE, "emotional": SAME}, ["and more"])
    assert verdict.sentence.endswith("; below compute_matched: -2.0 points [-3.0, -1.0] (n = 10, p = 0.01); and more")


def test_too_few_seeds_are_named() -> None:
    blind = dataclasses.replace(SAME, n=3, visible=math.inf)
    verdict = judge("resnet", dict.fromkeys(REQUIRED, blind))
    assert "(with 3 seeds no effect could have been seen, however large)" in verdict.sentence


@pytest.mark.parametrize("n", [6, 10])
def test_the_simulated_power_is_that_of_the_permutation_test(n: int) -> None:
    """Of SciPy's test, which gives the p-values."""
    effect = visible_effect(1.0, n, 1)
    samples = np.random.default_rng(1).normal(effect, 1.0, size=(400, n))
    p_values = [stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=2**n).pvalue for row in samples]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.8, abs=0.06)


# Simulated truth


@pytest.fixture
def _little_garbage() -> Iterator[None]:
    """statsmodels collects garbage at each correction, which takes long among all that other tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def confirm(random: np.random.Generator, effect: float, n: int) -> list[str]:
    """What is said of two backbones, of which regulation lifts the accuracy by ``effect`` over every control."""
    family = {}
    for backbone in ("resnet", "vit"):
        luck = random.normal(0.0, 0.01, n)  # a seed's, which all that share it have
        regulated = 0.8 + luck + effect + random.normal(0.0, 0.01, n)
        for control in REQUIRED:
            family[backbone, control] = list(regulated - (0.8 + luck + random.normal(0.0, 0.01, n)))
    found = compare(family, num_resamples=20)
    return [
        judge(backbone, {control: found[backbone, control] for control in REQUIRED}).decision for backbone in ("resnet", "vit")
    ]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("_little_garbage")
def test_the_false_claims_of_a_thousand_confirmations_are_few() -> None:
    random = np.random.default_rng(0)
    said = [confirm(random, 0.0, 10) for _ in range(1000)]
    assert sum(verdicts != ["no difference seen"] * 2 for verdicts in said) / 1000 <= 0.05


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("_little_garbage")
def test_an_effect_is_seen_as_often_as_computed() -> None:
    random = np.random.default_rng(1)
    deviation = 0.01 * math.sqrt(2)  # of the difference of two
    visible = visible_effect(deviation, 10, len(FAMILY))
    alone = [compare({0: list(random.normal(visible, deviation, 10))}, num_resamples=20)[0].p_value for _ in range(1000)]
    share = float(np.mean([p_value <= 0.05 / len(FAMILY) for p_value in alone]))
    assert share == pytest.approx(0.8, abs=0.05)
    small, large = ([confirm(random, factor * visible, 10) for _ in range(100)] for factor in (0.2, 2.0))
    assert sum(verdict == "helps" for verdicts in small for verdict in verdicts) / 200 < 0.05
    assert sum(verdict == "helps" for verdicts in large for verdict in verdicts) / 200 > 0.95


def test_a_large_family_is_tested_finely_enough_to_show_anything() -> None:
    random = np.random.default_rng(0)
    family = dict.fromkeys(range(1, 216), [0.0] * 14) | {0: list(random.normal(0.3, 0.01, 14))}
    assert compare(family, num_resamples=20)[0].is_better


def test_differences_that_are_equal_but_for_rounding_do_not_vary() -> None:
    found = compare({"plain": [(200 + i) / 360 - (199 + i) / 360 for i in (1, 5, 9)]})["plain"]
    assert found.effect_size is None
    assert (found.low, found.high) == (pytest.approx(1 / 360), pytest.approx(1 / 360))
    alike = compare(dict.fromkeys(REQUIRED, [0.0] * 10))
    assert "no difference seen to plain, untrained and shuffled (n = 10; no seed differs from another)" in (
        judge("vit", {str(key): value for key, value in alike.items()}).sentence
    )
