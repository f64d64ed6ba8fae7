"""Paired comparisons of regulation with its controls, and what may be said of them. Imports neither torch nor Ray.

Two configurations are compared by the differences of their test accuracies, seed by seed. Two-sided p-values come from the
paired permutation test (signs of the differences flipped, exact up to 13 seeds), corrected by Holm's method over the whole
family of comparisons that is looked at together; intervals from the bias-corrected and accelerated bootstrap (Efron 1987); the
smallest effect that could have been seen from the power of that test at Holm's strictest level: simulated up to 13 seeds, and
the paired t-test's beyond.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from scipy import stats
from scipy.optimize import bisect

from emoreg.errors import ConfigError
from emoreg.results.extra import report_extra

ALPHA = 0.05
"""Chance of a false claim, over all comparisons of a family."""
POWER = 0.8
"""Chance of seeing the smallest effect that is called visible."""
REQUIRED = ("plain", "untrained", "shuffled")
"""Controls that regulation must beat, every one, for "helps" (method, section 1)."""
_MOST_PERMUTATIONS = 2**13  # unless the family is so large that its strictest level needs more
_PERMUTATIONS_A_LEVEL = 20
_ROUNDING = 1e-12
_BATCH = 1024  # permutations that are in memory at once
_SIMULATED = 1000
_MOST_SIMULATED_SEEDS = 13  # beyond, for 12 comparisons or fewer, what the t-test sees is at most 3 % too small

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One configuration against another, over the same seeds. Differences are of accuracies, in [-1, 1].

    Attributes:
        n: seeds.
        difference: the mean of the differences.
        low: lower end of its 95 % interval; None for a single seed.
        high: upper end.
        p_value: of the permutation test, as if this were the only comparison.
        adjusted: the same by Holm's method.
        effect_size: Cohen's d of paired differences: their mean by their standard deviation. None where they do not vary.
        visible: smallest true difference that these seeds would have shown, with the chance ``POWER``; infinite where no
            effect could have been seen, however large.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p_value: float
    adjusted: float
    effect_size: float | None
    visible: float

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be above the other."""
        return self.adjusted <= ALPHA and self.difference > 0

    @property
    def is_worse(self) -> bool:
        """Whether it is shown to be below the other."""
        return self.adjusted <= ALPHA and self.difference < 0


class Decision(StrEnum):
    """What may be said of a regulated configuration: ``HELPS`` where it beats every control in ``REQUIRED``."""

    HELPS = "helps"
    HARMS = "harms"
    NO_DIFFERENCE = "no difference seen"
    NOTHING = "nothing can be said"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What may be said of one regulated configuration (with an empty name: of a whole study), and why, in words that follow it.

    ``beaten`` are controls that it beats nevertheless, where it does not help; caveats are what a reader must know beside it.
    """

    name: str
    decision: Decision
    beaten: tuple[str, ...] = ()
    reasons: str
    caveats: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The words before the decision."""
        return (f"{self.name}: " if self.name else "") + (f"beats {_listed(self.beaten)}, but " if self.beaten else "")

    @property
    def explanation(self) -> str:
        """The words after the decision."""
        return "; ".join((self.reasons, *self.caveats))

    @property
    def sentence(self) -> str:
        """The whole sentence for a reader."""
        return f"{self.subject}{self.decision}{self.explanation}"


def compare(family: Mapping[Key, Sequence[float]], *, num_resamples: int = 9999) -> dict[Key, Comparison]:
    """Compare within a family: all comparisons that a reader will look at together, as differences, one for each seed.

    Raises:
        ConfigError: for a comparison without seeds.
    """
    for key, differences in family.items():
        if not differences:
            raise ConfigError(f"a comparison needs seeds that both sides ran, but {key!r} has none: run the missing trials")
    if not family:
        return {}
    with report_extra():
        from statsmodels.stats.multitest import multipletests

    arrays = {key: np.asarray(differences) for key, differences in family.items()}
    p_values = [_p_value(array, len(family)) for array in arrays.values()]
    adjusted = multipletests(p_values, alpha=ALPHA, method="holm")[1]
    found = {}
    for (key, array), p_value, holm in zip(arrays.items(), p_values, adjusted, strict=True):
        n, mean = len(array), float(array.mean())
        deviation = math.nan if n == 1 else 0.0 if _is_constant(array) else float(array.std(ddof=1))
        low, high = _interval(array, num_resamples)
        found[key] = Comparison(
            n=n,
            difference=mean,
            low=low,
            high=high,
            p_value=p_value,
            adjusted=float(holm),
            effect_size=mean / deviation if deviation > 0 else None,
            visible=visible_effect(deviation, n, len(family)) if n > 1 else math.inf,
        )
    return found


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``n`` images, by Wilson (1927): it stays within [0, 1], also for few."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half_width), min(1.0, middle + half_width)


def fewest_seeds(num_comparisons: int) -> int:
    """Seeds below which the permutation test cannot show anything, if that many comparisons make a family."""
    return math.ceil(math.log2(2 * num_comparisons / ALPHA))


def visible_effect(deviation: float, n: int, num_comparisons: int) -> float:
    """The smallest true difference that ``n`` seeds show with the chance ``POWER``, at Holm's strictest level.

    ``deviation`` is the standard deviation of the differences.
    """
    return deviation * _visible_size(n, num_comparisons) if n >= fewest_seeds(num_comparisons) else math.inf


@functools.cache
def _visible_size(n: int, num_comparisons: int) -> float:
    """The same in standard deviations. Few seeds are simulated, since the permutation test then sees less than the t-test."""
    with report_extra():
        from statsmodels.stats.power import TTestPower

    level = ALPHA / num_comparisons
    of_t_test = float(TTestPower().solve_power(nobs=n, alpha=level, power=POWER, alternative="two-sided"))
    if n > _MOST_SIMULATED_SEEDS:
        return of_t_test
    noise = np.random.default_rng(0).normal(size=(_SIMULATED, n))
    # The permutation test of thousands of samples, as one product of matrices. Signs that are all turned round give the same
    # distance from zero, so half of them will do; the first are the sample's own.
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n))[: 2 ** (n - 1)])

    def excess(size: float) -> float:
        sums = np.abs((noise + size) @ signs.T)
        p_values = np.mean(sums >= sums[:, :1] * (1 - 1e-12), axis=1)
        return float(np.mean(p_values <= level)) - POWER

    return float(bisect(excess, 0.5 * of_t_test, 10 * of_t_test, xtol=0.01))


def judge(name: str, comparisons: Mapping[str, Comparison], caveats: Sequence[str] = ()) -> Verdict:
    """What may be said of a regulated configuration by its comparisons with each control, by the controls' names.

    A control that is better than regulation becomes a caveat of every verdict: a gain that plainer training exceeds is a poor
    one.
    """
    required = {control: comparisons[control] for control in REQUIRED if control in comparisons}
    missing = [control for control in REQUIRED if control not in comparisons]
    rest = {control: found for control, found in required.items() if not found.is_better}
    worse = {control: found for control, found in required.items() if found.is_worse}
    beaten = tuple(control for control in required if control not in rest)
    if not missing and not rest:
        gains = (f"{_points(found)} over {control}" for control, found in required.items())
        decision, beaten, reasons = Decision.HELPS, (), f": {', '.join(gains)}"
    elif worse:
        losses = (f"{_points(found)} against {control}" for control, found in worse.items())
        decision, reasons = Decision.HARMS, f": {', '.join(losses)}"
    elif missing:
        lack = f"no trial of {_listed(missing)} has finished on these seeds"
        decision, beaten, reasons = Decision.NOTHING, (), f": {lack}"
    else:
        decision, reasons = Decision.NO_DIFFERENCE, f" to {_listed([*rest])} ({_seen(rest.values())})"
    above = [control for control, found in comparisons.items() if control not in REQUIRED and found.is_worse]
    caveats = (*(f"below {control}: {_points(comparisons[control])}" for control in above), *caveats)
    return Verdict(name=name, decision=decision, beaten=beaten, reasons=reasons, caveats=caveats)


def _seen(comparisons: Collection[Comparison]) -> str:
    n, largest = min(found.n for found in comparisons), max(found.visible for found in comparisons)
    if largest == 0:
        return f"n = {n}; no seed differs from another"
    if math.isinf(largest):
        return f"with {n} seed{'' if n == 1 else 's'} no effect could have been seen, however large"
    return f"n = {n}; effects above {100 * largest:.1f} points would have been, four times in five"


def _interval(differences: np.ndarray, num_resamples: int) -> tuple[float, float] | tuple[None, None]:
    if len(differences) < 2:
        return None, None
    if _is_constant(differences):
        return float(differences[0]), float(differences[0])
    rng = np.random.default_rng(0)
    found = stats.bootstrap((differences,), np.mean, n_resamples=num_resamples, rng=rng, method="BCa").confidence_interval
    return float(found.low), float(found.high)


def _is_constant(differences: np.ndarray) -> bool:
    """Whether they are equal but for rounding: test accuracies differ by one image of a million at least."""
    return bool(np.ptp(differences) < _ROUNDING)


def _p_value(differences: np.ndarray, num_comparisons: int) -> float:
    """Of the permutation test, fine enough for Holm's strictest level."""
    if len(differences) < 2 or not differences.any():
        return 1.0
    tested = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=max(_MOST_PERMUTATIONS, math.ceil(_PERMUTATIONS_A_LEVEL * num_comparisons / ALPHA)),
        batch=_BATCH,
        rng=np.random.default_rng(0),
        vectorized=True,
        axis=-1,
    )
    return float(tested.pvalue)


def _points(comparison: Comparison) -> str:
    interval = "" if comparison.low is None else f" [{100 * comparison.low:+.1f}, {100 * (comparison.high or 0.0):+.1f}]"
    return f"{100 * comparison.difference:+.1f} points{interval} (n = {comparison.n}, p = {comparison.adjusted:.2g})"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
