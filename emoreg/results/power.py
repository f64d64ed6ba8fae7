"""Before the test split is opened: how likely a confirmation is to see the smallest effect that matters, and with which seeds.

The spread of a gain is that of the search's controls on validation. The power is simulated: regulation is better than every
control by the effect, gains share regulation's own luck (their correlation is 0.5), and no other ladder of the confirmation is
climbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from emoreg.results.ladder import LADDER, LEVEL, ON_LADDER
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import FEWEST_SEEDS, p_above

POWER = 0.8
"""The chance that is asked for, where seeds are counted by it."""
MOST_SEEDS = 100
"""More are not counted: such an effect takes another design."""
_UPPER = 0.8
_SIMULATED = 4000


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of a gain from seed to seed, in points, over ``n`` seeds of a search's controls.

    ``upper`` is the upper limit of its one-sided 80 % interval: one that is estimated from few seeds may well be too small.
    """

    deviation: float
    upper: float
    n: int


def paired_spread(records: Iterable[TrialRecord], backbone: str) -> Spread | None:
    """The spread of regulation's gains over its controls on validation; None where fewer than two seeds have both."""
    accuracies: dict[str, dict[int, float]] = {}
    for row in records:
        if (row.role, row.status, row.backbone) == ("control", "finished", backbone) and row.val_accuracy is not None:
            accuracies.setdefault(row.control, {})[row.seed] = 100 * row.val_accuracy
    regulated = accuracies.get("regulated", {})
    gains = [
        [regulated[seed] - accuracy for seed, accuracy in by_seed.items() if seed in regulated]
        for control, by_seed in accuracies.items()
        if control in ON_LADDER
    ]
    n = max(map(len, gains), default=0)
    if n < 2:
        return None
    variances = [float(np.var(values, ddof=1)) for values in gains if len(values) > 1]
    deviation = math.sqrt(math.fsum(variances) / len(variances))
    # The controls share regulation's luck, so together they tell hardly more of the spread than one of them.
    return Spread(deviation, deviation * math.sqrt((n - 1) / float(special.chdtri(n - 1, _UPPER))), n)


def rungs_of(controls: Iterable[str]) -> list[int]:
    """How many of the controls stand on each rung, up to the first rung without one: what can be climbed."""
    there = {*controls}
    counts = [len(there.intersection(rung.controls)) for rung in LADDER]
    return counts[: counts.index(0)] if 0 in counts else counts


def ladder_power(effect: float, deviation: float, n: int, *, rungs: Sequence[int], num_ladders: int) -> list[float]:
    """The chance that each rung is reached with ``n`` seeds, where regulation is ``effect`` better than every control.

    Args:
        effect: in the unit of ``deviation``.
        deviation: of a gain from seed to seed.
        n: seeds.
        rungs: controls on each rung.
        num_ladders: of the confirmation, which share the level.
    """
    random = np.random.default_rng(0)
    shared, holds = random.standard_normal((_SIMULATED, n)), np.ones(_SIMULATED, dtype=bool)
    reached = []
    for num_controls in rungs:
        for _ in range(num_controls):
            luck = (shared + random.standard_normal((_SIMULATED, n))) / math.sqrt(2)
            holds &= p_above(effect + deviation * luck) * num_ladders <= LEVEL
        reached.append(float(holds.mean()))
    return reached


def seeds_for(power: Callable[[int], float]) -> int | None:
    """The fewest seeds for which ``power`` is ``POWER``; None for more than ``MOST_SEEDS``."""
    low, high = FEWEST_SEEDS, MOST_SEEDS
    if power(high) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle + 1, high)
    return low
