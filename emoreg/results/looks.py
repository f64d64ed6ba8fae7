"""Two looks at a confirmation, after a first part of its seeds and after all, at no higher chance of a false claim.

The plan is O'Brien and Fleming's (1979): with a share t of the seeds at the first look, a claim takes z of at least c / sqrt(t)
there, and of at least c at the last. A p-value at a look becomes the least level at which this plan claims there (the repeated
p-value: Jennison and Turnbull 1984), and stands where a single look's would: a fixed sequence, a rung with several controls and
Holm's method over ladders hold their level with it (Maurer and Bretz 2013). Intervals invert it. A t-test's p-value is taken as
that of the z of the same chance, which tests simulate (Jennison and Turnbull 2000, 11.4).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a confirmation.

    Attributes:
        share: of the seeds that the first of two looks has; 1 where there is but one look.
        is_first: whether it is the first of two.
    """

    share: float = 1.0
    is_first: bool = False

    def repeated(self, p_value: np.ndarray | float) -> np.ndarray:
        """The least level at which the plan claims what has this one-sided p-value at this look."""
        return np.asarray(p_value) if self.share == 1 else _level(-special.ndtri(p_value) * self._scale, self.share)

    def nominal(self, level: float) -> float:
        """The largest one-sided p-value with which the plan, held to ``level``, claims at this look."""
        return level if self.share == 1 else float(special.ndtr(-_bound(level, self.share) / self._scale))

    @property
    def _scale(self) -> float:
        return math.sqrt(self.share) if self.is_first else 1.0


ONLY_LOOK = Look()
"""That of a plan of one."""


def num_at_first_look(num_seeds: int) -> int:
    """How many seeds of a plan of two looks the first one has."""
    return math.ceil(num_seeds / 2)


def _level(bound: np.ndarray | float, share: float) -> np.ndarray:
    """The chance that z passes ``bound / sqrt(share)`` at the first look or ``bound`` at the last, where there is no effect.

    By Owen's (1956) form of the bivariate normal distribution: at these two bounds one of its two terms is nought.
    """
    apart = special.ndtr(-bound / math.sqrt(share)) + special.ndtr(-np.asarray(bound))
    return np.asarray(apart / 2 + special.owens_t(bound, math.sqrt((1 - share) / share)))


@functools.cache
def _bound(level: float, share: float) -> float:
    """The bound whose chance is ``level``."""
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _level(middle, share) > level else (low, middle)
    return high
