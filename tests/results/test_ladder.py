"""How far a configuration climbs, what its verdict says, and how often either is false."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from emoreg.config import CONTROLS
from emoreg.config.controls import ON_LADDER
from emoreg.results.ladder import LEVEL, Comparisons, Decision, Verdict, climb, judge
from emoreg.results.looks import ONLY_LOOK, Look
from emoreg.results.plan import Rival
from emoreg.results.planning import NUM_BEST
from emoreg.results.statistics import Comparison

ALL = ("plain", "compute_matched", "untrained", "shuffled", "neutral")
"""A control of each rung: `ensemble` and `wide` share that of `compute_matched`."""
WOBBLE = np.array([-0.004, -0.002, -0.001, 0.0, 0.0, 0.0, 0.0, 0.001, 0.002, 0.004])


def gains(points: float, n: int = 10) -> Comparison:
    return Comparison(dict(enumerate(points / 100 + WOBBLE[:n])))


def ladder(**points: float) -> dict[Rival, Comparison]:
    return {Rival(control): gains(value) for control, value in points.items()}


def verdict(comparisons: Comparisons, smallest_effect: float | None = 0.5) -> Verdict:
    return judge("resnet", comparisons, climb({0: comparisons})[0], smallest_effect)


def test_every_control_that_a_verdict_depends_on_stands_on_one_rung() -> None:
    assert len({*ON_LADDER}) == len(ON_LADDER)
    assert {*ALL, "ensemble", "wide", "untrained_matched", "relabelled"} == CONTROLS.keys() & {*ON_LADDER}
    assert CONTROLS.keys() - {*ON_LADDER} == {"regulated", "emotional"}, "what is outside is exploratory"


def test_it_climbs_to_the_first_rung_that_does_not_hold() -> None:
    found = climb({0: ladder(plain=2, compute_matched=2, untrained=0, shuffled=2, neutral=2)})[0]
    assert (found.height, found.decision) == (2, Decision.BETTER)
    assert [p_value <= LEVEL for p_value in found.p_values] == [True, True, False, False, False]


def test_who_stands_on_the_last_rung_helps() -> None:
    found = verdict(ladder(**dict.fromkeys(ALL, 2.0)))
    assert found.decision == Decision.HELPS
    assert found.sentence.startswith("resnet: helps: +2.0 points [+1.8, +2.2] over plain (n = 10, p < 0.0001); ")
    assert "over neutral (n = 10, p < 0.0001; not tried: relabelled)" in found.sentence
    assert found.beaten == ALL


def test_a_verdict_says_the_highest_rung_and_what_is_not_shown_above_it() -> None:
    found = verdict(ladder(plain=2, compute_matched=-3, untrained=2, shuffled=2))
    assert (found.claim, found.beaten) == ("better than the backbone", ("plain",))
    assert found.sentence.startswith("resnet: better than the backbone (rung 1 of 5): +2.0 points")
    said = "Not shown above it: better than its price: -3.0 points [-3.2, -2.8] over compute_matched (n = 10, p = 1; not tried:"
    assert said in found.sentence


def test_a_rung_that_was_not_tried_stops_the_ladder() -> None:
    found = verdict(ladder(plain=2, untrained=2, shuffled=2, neutral=2))
    assert found.claim == "better than the backbone"
    assert found.sentence.endswith("better than its price: not tried: compute_matched, ensemble, wide")


def test_a_rung_needs_all_of_its_controls() -> None:
    both = ladder(plain=2, compute_matched=2, wide=0)
    assert climb({0: both})[0].height == 1
    assert climb({0: both})[0].p_values[1] == pytest.approx(both[Rival("wide")].p_better), "the largest p-value is the rung's"


def test_a_control_is_beaten_at_the_second_best_of_its_search_too() -> None:
    best = ladder(plain=2, compute_matched=2)
    second = {Rival("plain", 2): gains(0.05)}
    assert climb({0: best | second})[0].height == 0, "a search may miss the best, but seldom twice"
    found = verdict(best | {Rival("plain", 2): gains(1)})
    assert "+2.0 points" in found.sentence
    assert re.search(r"over plain, \+1\.0 points \[[^]]*\] over plain \(2nd\)", found.sentence)
    assert found.beaten == ("plain", "compute_matched")
    assert not climb({0: ladder(plain=-2) | second})[0].is_below, "nor is it below what it is no worse than"
    assert climb({0: ladder(plain=-2) | {Rival("plain", 2): gains(-1)}})[0].is_below


def test_only_below_the_backbone_does_it_harm() -> None:
    assert verdict(ladder(plain=-2, untrained=-2)).sentence == "resnet: harms: -2.0 points [-2.2, -1.8] over plain (n = 10)"
    assert verdict(ladder(plain=2, compute_matched=2, untrained=-2)).claim == "better than its price"


def test_what_is_not_shown_is_not_said_to_be_absent() -> None:
    found = verdict({Rival("plain"): Comparison(dict(enumerate(0.004 + 5 * WOBBLE)))})
    assert (found.decision, found.claim) == (Decision.NOT_SHOWN, "not shown")
    assert found.sentence.startswith("resnet: not shown to be better than the backbone: +0.4 points [")


def test_absence_is_claimed_against_an_effect_that_was_declared() -> None:
    found = verdict(ladder(plain=0.05, untrained=2))
    assert (found.decision, found.claim) == (Decision.ABSENT, "no effect as large as 0.5 points")
    assert verdict(ladder(plain=0.05), smallest_effect=0.1).decision == Decision.NOT_SHOWN
    assert verdict(ladder(plain=0.05), smallest_effect=None).decision == Decision.NOT_SHOWN
    above = verdict(ladder(plain=2, compute_matched=2, untrained=0.05))
    assert above.sentence.endswith(
        "over untrained (n = 10, p = 0.24; not tried: untrained_matched), no effect as large as 0.5 points"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_two_seeds_cannot_tell(n: int) -> None:
    found = verdict({Rival(control): gains(5, n) for control in ALL})
    assert found.sentence == f"resnet: cannot be told (n = {n}): a verdict takes 3 seeds or more"


def test_without_the_backbone_nothing_can_be_told() -> None:
    assert verdict(ladder(untrained=2)).sentence == "resnet: cannot be told: not tried: plain"


def test_ladders_share_the_level_and_one_that_is_climbed_leaves_its_share() -> None:
    near = {Rival("plain"): Comparison(dict(enumerate(0.0016 + WOBBLE)))}
    assert LEVEL / 2 < near[Rival("plain")].p_better < LEVEL
    assert climb({"a": near})["a"].height == 1
    assert climb({"a": near, "b": ladder(plain=0)})["a"].height == 0
    assert climb({"a": near, "b": ladder(plain=2)})["a"].height == 1
    stuck = climb({"a": near, "b": ladder(plain=2, compute_matched=0)})
    assert (stuck["a"].height, stuck["b"].height) == (0, 1), "who is stuck on the way needs its share"


# Simulated truth: 2,000 confirmations of two backbones each, in points; a gain's standard deviation is 1.


FAR = dict(zip(ALL, (-5.0, -5.0, -5.0, -5.0, -5.0), strict=True))


def simulated(
    means: Mapping[str, float],
    n: int = 10,
    *,
    collapse: float = 0.0,
    split: float = 0.0,
    seed: int = 0,
    first: int | None = None,
) -> list[list[int]]:
    """Heights of each backbone: accuracies of regulation (mean 0) and of each control, which share the luck of seeds.

    Args:
        means: of the controls.
        n: seeds.
        collapse: chance that a training of either arm loses 10 points.
        split: standard deviation of what the split of a seed does to the arms, each for itself.
        seed: of the random numbers.
        first: seeds of the first of two looks, both of which are taken; None for one look.
    """
    random = np.random.default_rng(seed)
    shape = (2000, 2, 1 + len(means), n)
    noise = random.standard_normal(shape) / np.sqrt(2) + random.standard_normal((2000, 2, 1, n))
    noise += split * random.standard_normal(shape) - 10 * (random.random(shape) < collapse)
    accuracies = noise + np.array([0.0, *means.values()])[:, None]
    if first is None:
        return heights_of(accuracies)
    looks = heights_of(accuracies[..., :first], Look(first / n, is_first=True)), heights_of(accuracies, Look(first / n))
    return [[*early, *late] for early, late in zip(*looks, strict=True)]


def heights_of(accuracies: np.ndarray, look: Look = ONLY_LOOK) -> list[list[int]]:
    """Of confirmations x backbones x (regulation, then each control, then each at its second best...) x seeds, in points."""
    differences = (accuracies[:, :, :1] - accuracies[:, :, 1:]) / 100
    rivals = [Rival(control, rank + 1) for rank in range(differences.shape[2] // len(ALL)) for control in ALL]
    heights = []
    for confirmation in differences:
        ladders = {
            key: {rival: Comparison(dict(enumerate(row)), look=look) for rival, row in zip(rivals, rows, strict=True)}
            for key, rows in enumerate(confirmation)
        }
        heights.append([found.height - 10 * found.is_below for found in climb(ladders).values()])
    return heights


def share_of_false(heights: list[list[int]], true_height: int) -> float:
    """Of confirmations with a rung too high or a false harm for any backbone."""
    return float(np.mean([any(height > true_height or height < 0 for height in found) for found in heights]))


@pytest.mark.slow
@pytest.mark.parametrize("rung", range(len(ALL)))
@pytest.mark.parametrize("n", [5, 10, 20])
def test_false_claims_are_rare_whichever_rung_is_the_first_that_is_false(rung: int, n: int) -> None:
    """All rungs below it are far below regulation, and so are those above: the least favourable case."""
    assert share_of_false(simulated({**FAR, ALL[rung]: 0.0}, n, seed=rung), rung) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "means",
    [dict.fromkeys(ALL, 0.0), FAR | {"untrained": 0.0, "shuffled": 0.0}],
    ids=["nothing helps", "only a second encoder helps"],
)
@pytest.mark.parametrize("what", [{}, {"split": 0.5}, {"collapse": 0.05}], ids=["seeds", "splits", "collapses"])
def test_false_claims_are_rare_under_splits_and_collapses(means: dict[str, float], what: dict[str, float]) -> None:
    true_height = next(number for number, mean in enumerate(means.values()) if mean == 0.0)
    assert share_of_false(simulated(means, **what), true_height) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("first", "n"), [(3, 5), (5, 10), (10, 20)])
@pytest.mark.parametrize("rung", [0, 2])
def test_false_claims_are_rare_at_either_of_two_looks(first: int, n: int, rung: int) -> None:
    """Whoever claims what either look shows, and so whatever ends the plan early."""
    assert share_of_false(simulated({**FAR, ALL[rung]: 0.0}, n, seed=rung, first=first), rung) <= 0.05


def searched_alike(loss: float, num_trials: int, *, num_best: int, count: int = 2000, n: int = 10) -> list[list[int]]:
    """Heights where all arms are equally good, each at a setting of its own: what searches find is confirmed.

    Args:
        loss: points that an arm loses at a third of the range from its best setting; 0.5 to 3.9 were measured.
        num_trials: of each search, at random settings, whose validation accuracies have a standard deviation of 0.7.
        num_best: so many settings of each control's own search are confirmed; 0: each control has regulation's setting.
        count: confirmations.
        n: seeds.
    """
    random = np.random.default_rng(0)
    best = random.uniform(0.15, 0.85, (count, 2, 1 + len(ALL), 1))
    tried = random.uniform(0.0, 1.0, (count, 2, 1 + len(ALL), num_trials))
    told = -loss * ((tried - best) / 0.35) ** 2 + random.normal(0.0, 0.7, tried.shape)
    ranked = np.take_along_axis(tried, np.argsort(-told, axis=-1), axis=-1)
    if num_best:
        chosen = np.concatenate(
            [ranked[:, :, :1, :1], *(ranked[:, :, 1:, rank : rank + 1] for rank in range(num_best))], axis=2
        )
        best = np.concatenate([best[:, :, :1], *[best[:, :, 1:]] * num_best], axis=2)
    else:
        chosen = np.broadcast_to(ranked[:, :, :1, :1], best.shape)
    noise = random.standard_normal((*chosen.shape[:3], n)) / np.sqrt(2)
    return heights_of(-loss * ((chosen - best) / 0.35) ** 2 + noise)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.5, 1.5, 3.9])
def test_what_equal_searches_leave_of_false_claims(loss: float) -> None:
    """Equal searches end unequally near the best: against each control at its best alone there are more than 5 % of claims."""
    untuned, best_alone, tuned = (share_above(searched_alike(loss, 16, num_best=num_best)) for num_best in (0, 1, NUM_BEST))
    print(f"claims at a loss of {loss} points: {untuned:.3f} untuned, {best_alone:.3f} at the best alone, {tuned:.3f} tuned")
    assert tuned <= 0.05 < best_alone
    assert untuned >= 3 * best_alone


def share_above(heights: list[list[int]]) -> float:
    """Of confirmations that claim a rung for any backbone."""
    return float(np.mean([max(found) > 0 for found in heights]))


@pytest.mark.slow
def test_absence_is_rarely_claimed_of_the_smallest_effect_itself() -> None:
    random = np.random.default_rng(0)
    said = []
    for gain in random.normal(0.5, 0.2, size=(2000, 2, 10)) / 100:  # points; all other than over plain is not tried
        ladders = {key: {Rival("plain"): Comparison(dict(enumerate(row)))} for key, row in enumerate(gain)}
        climbs = climb(ladders)
        said.append(any(judge("", ladders[key], climbs[key], 0.5).decision == Decision.ABSENT for key in ladders))
    assert np.mean(said) <= 0.05
