"""Before the test split is opened: how likely a confirmation is to see the smallest effect that matters, and with which seeds.

The spread of a gain is that of the search's controls on validation. The power is simulated: regulation is better than every
control by the effect, gains share regulation's own luck (their correlation is 0.5), and no other ladder of the confirmation is
climbed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from emoreg.config.controls import LADDER, ON_LADDER
from emoreg.errors import ConfigError
from emoreg.results.ladder import LEVEL
from emoreg.results.looks import Look, num_at_first_look
from emoreg.results.plan import Chosen, Tuned
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import FEWEST_SEEDS, p_above

POWER = 0.8
"""The chance that is asked for, where seeds are counted by it."""
MOST_SEEDS = 100
"""More are not counted: such an effect takes another design."""
_UPPER = 0.8
_WORTH = 0.5
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


def rungs_of(controls: Collection[str]) -> list[int]:
    """How many of the controls stand on each rung, up to the first rung without one: what can be climbed.

    A control counts as often as it is there: at each of the best of its search.
    """
    counts = [sum(control in rung.controls for control in controls) for rung in LADDER]
    return counts[: counts.index(0)] if 0 in counts else counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Prospect:
    """What a confirmation can expect to see of one configuration.

    Attributes:
        name: of the configuration.
        spread: of its gains.
        effect: the smallest that matters, in points.
        rungs: controls on each rung that can be climbed.
        num_ladders: of the confirmation.
        num_looks: at its answer, 1 or 2.
    """

    name: str
    spread: Spread
    effect: float
    rungs: Sequence[int]
    num_ladders: int
    num_looks: int = 1

    def power(self, n: int, deviation: float | None = None) -> list[float]:
        """The chance that each rung is reached with ``n`` seeds, for the spread or another standard deviation.

        Beside other ladders, which are not climbed, the first of two looks never ends the plan.
        """
        random, spread = np.random.default_rng(0), self.spread.deviation if deviation is None else deviation
        shared, holds = random.standard_normal((_SIMULATED, n)), np.ones(_SIMULATED, dtype=bool)
        first = num_at_first_look(n) if self.num_looks == 2 else n
        early, reached = np.full(_SIMULATED, first < n and self.num_ladders == 1), []
        for num_controls in self.rungs:
            for _ in range(num_controls):
                gains = self.effect + spread * (shared + random.standard_normal((_SIMULATED, n))) / math.sqrt(2)
                holds &= Look(first / n).repeated(p_above(gains)) * self.num_ladders <= LEVEL
                early &= Look(first / n, is_first=True).repeated(p_above(gains[:, :first])) <= LEVEL
            reached.append(holds.copy())
        return [float((early | found).mean()) for found in reached]

    def seeds(self, deviation: float) -> int | None:
        """The fewest seeds with which the last rung is reached with the chance ``POWER``; None for more than ``MOST_SEEDS``."""
        low, high = self.num_looks * FEWEST_SEEDS, MOST_SEEDS
        if self.power(high, deviation)[-1] < POWER:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.power(middle, deviation)[-1] >= POWER else (middle + 1, high)
        return low


def prospects(
    chosen: Collection[Chosen],
    records: Sequence[TrialRecord],
    controls: Collection[str],
    effect: float,
    num_looks: int = 1,
    tuned: Collection[Tuned] = (),
) -> dict[str, Prospect]:
    """What a confirmation can expect of each configuration, by its identity, where the search's controls tell its spread."""
    expected = {}
    for found in chosen:
        second = [item.control for item in tuned if item.chosen == found.identity and item.rank > 1]
        rungs, spread = rungs_of([*controls, *second]), paired_spread(records, found.backbone)
        if rungs and spread is not None:
            expected[found.identity] = Prospect(
                name=found.name, spread=spread, effect=effect, rungs=rungs, num_ladders=len(chosen), num_looks=num_looks
            )
    return expected


def seeds_enough(found: Collection[Prospect]) -> int:
    """Seeds with which every configuration reaches its last rung with the chance ``POWER``, were its spread at the upper limit.

    ``MOST_SEEDS`` at most.

    Raises:
        ConfigError: where no spread is known.
    """
    if not found:
        raise ConfigError(
            "Give --seeds a number, or run controls on several seeds first (--control-seeds 0 1 2): `auto` counts seeds by how "
            "far gains over the controls vary from seed to seed, which a single seed does not tell"
        )
    return max(prospect.seeds(prospect.spread.upper) or MOST_SEEDS for prospect in found)


def looks_of(num_looks: int, num_seeds: int) -> tuple[int, ...]:
    """After how many seeds a plan of two looks is looked at; empty for a plan of one.

    Raises:
        ConfigError: for fewer seeds than two looks take.
    """
    if num_looks == 1:
        return ()
    first = num_at_first_look(num_seeds)
    if first < FEWEST_SEEDS:
        raise ConfigError(
            f"Give --seeds {2 * FEWEST_SEEDS - 1} or more, or leave out --looks: a look takes {FEWEST_SEEDS} seeds, but the "
            f"first half of {num_seeds} has {first}"
        )
    return first, num_seeds


def refuse_underpowered(found: Collection[Prospect], num_seeds: int) -> None:
    """Refuse a confirmation that cannot answer, by its own words.

    Raises:
        ConfigError: for fewer seeds than a verdict takes, or where no configuration would rather be seen to be better than its
            backbone than not.
    """
    insist = "or --underpowered to open the test set all the same"
    if num_seeds < FEWEST_SEEDS:
        raise ConfigError(
            f"Give --seeds {FEWEST_SEEDS} or more, {insist}: a verdict takes {FEWEST_SEEDS} seeds, but there are {num_seeds}"
        )
    best = max((prospect.power(num_seeds)[0] for prospect in found), default=1.0)
    if best < _WORTH:
        effect = next(iter(found)).effect
        raise ConfigError(
            f"Give more --seeds (`auto` counts them), a larger --smallest-effect, {insist}: a gain of {effect:g} points over "
            f"the backbone must be more likely seen than not, but on {num_seeds} seeds its chance is {100 * best:.0f} % at best"
        )
