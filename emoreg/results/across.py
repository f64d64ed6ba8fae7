"""One answer over several studies: what regulation gains over a control on average, over stimuli, backbones and tasks.

The units are confirmed configurations, one of each backbone and task of each study. Their true gains are taken to differ
(random effects), and what is said is meant for others of their kind. Configurations that share trials of a control, as those on
one task share ``plain``, are taken as independent. Imports neither torch nor Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from emoreg.config import in_order
from emoreg.config.controls import ON_LADDER
from emoreg.formatting import counted
from emoreg.results.statistics import ALPHA, FEWEST_SEEDS, Comparison, Interval, exact_interval

if TYPE_CHECKING:
    from emoreg.results.study import StudyResults

FEWEST_UNITS = 2
"""Below, there is nothing to summarise."""
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """The mean of the effects of units of a kind.

    Attributes:
        num_units: how many it is estimated from.
        mean: of the true effects.
        interval: of the mean, 95 %.
        deviation: of the true effects, from unit to unit.
    """

    num_units: int
    mean: float
    interval: Interval
    deviation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Across:
    """What regulation gains over one control, over several configurations.

    Attributes:
        control: that it is compared with.
        gain: as a share in [-1, 1].
        share_above: how often it is above the control with the same seed: P(A > B). Equal ones count half.
        share_interval: of that, 95 %.
        num_seeds: of all configurations together.
    """

    control: str
    gain: Effect
    share_above: float
    share_interval: Interval
    num_seeds: int


def together(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The studies of one report: the verdicts of each are corrected for the ladders of all."""
    ladders = [(at, found) for at, study in enumerate(studies) for found in study.ladders.values()]
    return [
        dataclasses.replace(study, beside=tuple(found for owner, found in ladders if owner != at))
        for at, study in enumerate(studies)
    ]


def across(studies: Sequence[StudyResults]) -> list[Across]:
    """What regulation gains over each control that several configurations were compared with."""
    found: dict[str, list[Comparison]] = {}
    for row in (row for study in studies for row in study.confirmed if row.chosen.rank == 1):
        if row.rank == 1 and row.comparison is not None and row.comparison.n >= FEWEST_SEEDS:
            found.setdefault(row.control, []).append(row.comparison)
    return [
        _across(control, found[control])
        for control in dict.fromkeys((*(name for name in ON_LADDER if name in found), *in_order(found)))
        if len(found[control]) >= FEWEST_UNITS
    ]


def across_line(studies: Sequence[StudyResults]) -> str:
    """What several studies say together, in a sentence; empty where no two configurations are confirmed."""
    found = across(studies)
    if not found:
        return ""
    gains = ", ".join(
        f"{100 * row.gain.mean:+.1f} points [{100 * row.gain.interval.low:+.1f}, {100 * row.gain.interval.high:+.1f}] over "
        f"{row.control} (better on {100 * row.share_above:.0f} % of seeds [{100 * row.share_interval.low:.0f}, "
        f"{100 * row.share_interval.high:.0f}], {counted(row.gain.num_units, 'configuration')})"
        for row in found
        if row.control in ON_LADDER
    )
    verdicts = [verdict for study in studies for verdict in study.verdicts.values()]
    standing = sum(bool(verdict.beaten) for verdict in verdicts)
    return (
        f"Together, {standing} of {counted(len(verdicts), 'ladder')} in {len(studies)} studies hold a rung, corrected for all "
        f"of them. What regulation gains on average (random effects, 95 %): {gains}."
    )


def _across(control: str, compared: Sequence[Comparison]) -> Across:
    share, interval = clustered_share([found.n for found in compared], [found.share_above for found in compared])
    return Across(
        control=control,
        gain=random_effects([found.mean for found in compared], [found.variance / found.n for found in compared]),
        share_above=share,
        share_interval=interval,
        num_seeds=sum(found.n for found in compared),
    )


def random_effects(effects: Sequence[float], variances: Sequence[float]) -> Effect:
    """The mean of effects that differ by more than their errors, with the interval of Hartung and Knapp (2001).

    How far they differ is estimated by DerSimonian and Laird (1986). The interval is never narrower than what the errors alone
    explain (the factor q is 1 at least, as IQWiG asks for), which effects that happen to be alike would make it.
    ``effects`` are those of two units or more, ``variances`` those of their errors.
    """
    y, v = np.asarray(effects), np.maximum(variances, _LEAST_VARIANCE)
    k, w = len(y), 1 / v
    heterogeneity = float(w @ (y - w @ y / w.sum()) ** 2)
    between = max(0.0, (heterogeneity - (k - 1)) / float(w.sum() - w @ w / w.sum()))
    w = 1 / (v + between)
    mean = float(w @ y / w.sum())
    q = max(1.0, float(w @ (y - mean) ** 2) / (k - 1))
    half = float(special.stdtrit(k - 1, 1 - ALPHA / 2)) * (q / float(w.sum())) ** 0.5
    return Effect(num_units=k, mean=mean, interval=Interval(mean - half, mean + half), deviation=between**0.5)


def clustered_share(sizes: Sequence[int], shares: Sequence[float]) -> tuple[float, Interval]:
    """The share of all, and its 95 % interval, of clusters whose shares may differ (Korn and Graubard 1998).

    It is the interval of Clopper and Pearson for as many independent ones as tell as much, and no more than there are.
    ``sizes`` are those of two clusters or more.
    """
    n, p, k = np.asarray(sizes, dtype=float), np.asarray(shares), len(sizes)
    total = float(n.sum())
    share = float(n @ p / total)
    variance = k / (k - 1) * float(((n / total * (p - share)) ** 2).sum())
    alike = total if variance == 0 else min(total, share * (1 - share) / variance)
    t_all, t_clusters = (float(special.stdtrit(freedom, 1 - ALPHA / 2)) for freedom in (total - 1, k - 1))
    effective = min(total, alike * (t_all / t_clusters) ** 2)
    return share, exact_interval(share * effective, effective, ALPHA / 2)
