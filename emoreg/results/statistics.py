"""Means over seeds, and one configuration against another, paired by seed. Imports neither torch nor Ray.

The differences of two configurations' test accuracies, seed by seed, are tested by the paired t-test, one-sided; intervals
invert the same test, and hold together for all rows of a table (Bonferroni). From ``FEWEST_FLIPPED`` seeds on, the sign-flip
test stands beside it, which assumes that differences are symmetric but not that they are normal.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from emoreg.results.looks import ONLY_LOOK, Look

ALPHA = 0.05
"""Chance of a false claim, over all that a confirmation claims; of an interval that misses, over all rows of its table."""
FEWEST_SEEDS = 3
"""Below, there is neither an interval nor a verdict."""
FEWEST_FLIPPED = 8
"""Below, the sign-flip test cannot show much: its smallest p-value is 1 in 2 to the power of the seeds."""
_MOST_EXACT_SEEDS = 13
_ROUNDING = 1e-12


class Interval(NamedTuple):
    """From where to where."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over n seeds, with half the width of its 95 % confidence interval (Student's t); None for a single seed."""

    mean: float
    half_width: float | None
    n: int

    def __str__(self) -> str:
        """In percent: "71.2 ± 1.3", or "71.2" for a single seed."""
        return f"{100 * self.mean:.1f}" + ("" if self.half_width is None else f" ± {100 * self.half_width:.1f}")


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, of which there is one or more, with its 95 % confidence interval by Student's t."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean=mean, half_width=None, n=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean=mean, half_width=_half_width(deviation, n, ALPHA / 2), n=n)


def _half_width(deviation: float, n: int, tail: float) -> float:
    """Half the width of Student's interval of a mean, which leaves ``tail`` at each of its ends."""
    return float(special.stdtrit(n - 1, 1 - tail)) * deviation / math.sqrt(n)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One configuration minus another, over the seeds that both have finished.

    Attributes:
        by_seed: differences of accuracies in [0, 1], by seed.
        num_rows: rows of the table that the comparison stands in, for all of which its intervals hold together.
        look: at which it is made: its p-values and intervals hold for all looks of a plan.
    """

    by_seed: Mapping[int, float]
    num_rows: int = 1
    look: Look = ONLY_LOOK

    def without(self, seed: int) -> Comparison:
        """The same, as if this seed had not been run."""
        return dataclasses.replace(self, by_seed={other: value for other, value in self.by_seed.items() if other != seed})

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Of the differences."""
        return float(self._differences.mean())

    @property
    def variance(self) -> float:
        """Of the differences, from seed to seed; 0 for a single one."""
        return float(_deviation(self._differences)) ** 2 if self.n > 1 else 0.0

    @property
    def interval(self) -> Interval | None:
        """Of the mean, by Student's t; None below ``FEWEST_SEEDS``."""
        if self.n < FEWEST_SEEDS:
            return None
        half = _half_width(float(_deviation(self._differences)), self.n, self._tail)
        return Interval(self.mean - half, self.mean + half)

    @property
    def p_better(self) -> float:
        """Chance of a mean as high, or higher, where there is no gain; 1 below ``FEWEST_SEEDS``."""
        return self._p_above(self._differences)

    @property
    def p_worse(self) -> float:
        """Chance of a mean as low, or lower, where there is no loss."""
        return self._p_above(-self._differences)

    def p_as_large(self, effect: float) -> float:
        """Chance of a mean so near to 0 where the true one is ``effect`` or more, up or down: two one-sided tests (TOST)."""
        return max(self._p_above(self._differences + effect), self._p_above(effect - self._differences))

    @property
    def p_sign_flip(self) -> float | None:
        """``p_better`` of the sign-flip test; None below ``FEWEST_FLIPPED``."""
        return None if self.n < FEWEST_FLIPPED else float(self.look.repeated(_p_sign_flip(tuple(self._differences))))

    @property
    def share_above(self) -> float:
        """Share of the seeds on which it is above the other: the chance P(A > B). Equal ones count half."""
        return float(np.mean((self._differences > _ROUNDING) + 0.5 * (np.abs(self._differences) <= _ROUNDING)))

    @property
    def share_interval(self) -> Interval | None:
        """Of ``share_above``; None below ``FEWEST_SEEDS``."""
        return None if self.n < FEWEST_SEEDS else exact_interval(self.n * self.share_above, self.n, self._tail)

    @property
    def _differences(self) -> np.ndarray:
        return np.array([*self.by_seed.values()])

    @property
    def _tail(self) -> float:
        """The chance that an interval of the row leaves at each of its ends."""
        return self.look.nominal(ALPHA / self.num_rows / 2)

    def _p_above(self, differences: np.ndarray) -> float:
        return float(self.look.repeated(p_above(differences)))


def p_above(differences: np.ndarray) -> np.ndarray:
    """One-sided p-values of the paired t-test that means over the last axis are above 0; 1 for fewer than ``FEWEST_SEEDS``.

    Differences that do not vary have no t; theirs is the sign-flip test's.
    """
    n = differences.shape[-1]
    if n < FEWEST_SEEDS:
        return np.ones(differences.shape[:-1])
    mean, deviation = differences.mean(axis=-1), _deviation(differences)
    varies = deviation > 0
    t = mean / np.where(varies, deviation, 1.0) * np.sqrt(n)
    return np.where(varies, special.stdtr(n - 1, -t), np.where(mean > _ROUNDING, 0.5**n, 1.0))


def exact_interval(above: float, n: float, tail: float) -> Interval:
    """That of a share of ``above`` in ``n``, which leaves ``tail`` at each of its ends (Clopper and Pearson 1934)."""
    low = float(special.betaincinv(above, n - above + 1, tail)) if above > 0 else 0.0
    high = float(special.betaincinv(above + 1, n - above, 1 - tail)) if above < n else 1.0
    return Interval(low, high)


def share_interval(share: float, n: int) -> Interval:
    """The 95 % interval of a share of ``n`` images, by Wilson (1927): it stays within [0, 1], also for few."""
    z = float(special.ndtri(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(max(0.0, middle - half_width), min(1.0, middle + half_width))


def _deviation(differences: np.ndarray) -> np.ndarray:
    """Their standard deviation; 0 where they are equal but for rounding: one image of a million is more than that."""
    return np.where(np.ptp(differences, axis=-1) < _ROUNDING, 0.0, differences.std(axis=-1, ddof=1))


@functools.cache
def _p_sign_flip(differences: tuple[float, ...]) -> float:
    sums = _signs(len(differences)) @ np.asarray(differences)
    return float(np.mean(sums >= sums[0] - _ROUNDING))


@functools.cache
def _signs(n: int) -> np.ndarray:
    """All ways to flip the signs of ``n`` differences or, of many, a sample of them. The first flips none."""
    if n <= _MOST_EXACT_SEEDS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(2**_MOST_EXACT_SEEDS, n))
    drawn[0] = 1.0
    return drawn
