"""The ladder: what regulation must be better than, in a declared order, and how far a configuration climbs.

Rungs are tested in their order, each one-sided and only if the rung before held, which needs no correction (a fixed sequence:
Maurer, Hothorn and Lehmacher 1995). A rung with several rivals needs all of them, be they controls or the two best of one
control's search: its p-value is the largest (an intersection-union test: Berger 1982). Holm's method is over ladders, one for
each configuration: one that is climbed to its end leaves its share of ``LEVEL`` to the others (Bretz et al. 2009).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from emoreg.config.controls import LADDER as LADDER
from emoreg.config.controls import Rung
from emoreg.formatting import p_text
from emoreg.results.plan import Rival
from emoreg.results.statistics import ALPHA, FEWEST_SEEDS, Comparison

Key = TypeVar("Key", bound=Hashable)
Comparisons = Mapping[Rival, Comparison]
"""Regulation against each rival."""

LEVEL = ALPHA / 2
"""Chance of a false rung, over all ladders; as much is left for ``harms``."""


class Decision(StrEnum):
    """What may be said of a regulated configuration."""

    HELPS = "helps"
    """It stands on the last rung."""
    BETTER = "better"
    """It stands on a rung before the last."""
    NOT_SHOWN = "not shown"
    """It stands on no rung."""
    ABSENT = "no effect"
    """Its gain over the backbone is shown to be smaller, up or down, than the smallest effect that was declared."""
    HARMS = "harms"
    """It is shown to be below the backbone."""
    UNTOLD = "cannot be told"


@dataclass(frozen=True, kw_only=True, slots=True)
class Climb:
    """How far a configuration climbs.

    Attributes:
        height: how many rungs hold, from the first.
        p_values: of the rungs that could be tested, by Holm's method over the ladders; they hold to ``LEVEL``.
        is_below: whether it is shown to be below the first rung's controls.
        is_blocked: whether it is shown to be below a rival of the rung after the last one that holds.
        share: how many ladders shared the level on which this one was tested.
    """

    height: int
    p_values: tuple[float, ...]
    is_below: bool
    is_blocked: bool
    share: int

    @property
    def decision(self) -> Decision:
        """What that comes to."""
        if self.height == len(LADDER):
            return Decision.HELPS
        return Decision.BETTER if self.height else Decision.HARMS if self.is_below else Decision.NOT_SHOWN


def climb(ladders: Mapping[Key, Comparisons]) -> dict[Key, Climb]:
    """How far each configuration of a confirmation climbs."""
    chains = {key: _chain(comparisons) for key, comparisons in ladders.items()}
    shares = _holm({key: chain[-1] if chain else 1.0 for key, chain in chains.items()})
    losses = {key: max((found.p_worse for found in tried(LADDER[0], ladders[key]).values()), default=1.0) for key in ladders}
    shares_of_losses = _holm(losses)
    heights = {key: sum(p_value * shares[key] <= LEVEL for p_value in chain) for key, chain in chains.items()}
    return {
        key: Climb(
            height=heights[key],
            p_values=tuple(min(1.0, p_value * shares[key]) for p_value in chain),
            is_below=losses[key] * shares_of_losses[key] <= LEVEL,
            is_blocked=any(
                found.p_worse * shares[key] <= LEVEL
                for rung in LADDER[heights[key] :][:1]
                for found in tried(rung, ladders[key]).values()
            ),
            share=shares[key],
        )
        for key, chain in chains.items()
    }


def tried(rung: Rung, comparisons: Comparisons) -> dict[Rival, Comparison]:
    """The comparisons with those controls of a rung that were run."""
    rivals = sorted((rung.controls.index(rival.control), rival) for rival in comparisons if rival.control in rung.controls)
    return {rival: comparisons[rival] for _, rival in rivals}


def _chain(comparisons: Comparisons) -> list[float]:
    """The p-value of each rung and of all before it, up to the first rung of which no control was run."""
    rungs = itertools.takewhile(bool, (tried(rung, comparisons) for rung in LADDER))
    return [*itertools.accumulate((max(found.p_better for found in rung.values()) for rung in rungs), max)]


def _holm(p_values: Mapping[Key, float]) -> dict[Key, int]:
    """By how much Holm's method multiplies each p-value, given that it is held to ``LEVEL``."""
    left, shares = len(p_values), {}
    for key, p_value in sorted(p_values.items(), key=lambda item: item[1]):
        shares[key] = left
        left -= p_value * left <= LEVEL
    return shares


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What may be said of one configuration (with an empty name: of a whole study), and why.

    Attributes:
        premises: what holds for the whole verdict, and so is said first.
        claim: the decision in words.
        reasons: the words after the claim.
        caveats: what a reader must know beside it.
        beaten: the controls of the rungs that hold.
        is_exploratory: whether what was confirmed may have been chosen knowing an earlier answer of the test split.
    """

    name: str
    decision: Decision
    claim: str
    reasons: str = ""
    premises: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    beaten: tuple[str, ...] = ()
    is_exploratory: bool = False

    @property
    def subject(self) -> str:
        """The words before the claim."""
        premises = f" ({'; '.join(self.premises)})" if self.premises else ""
        return f"{self.name}{premises}: " if self.name else ""

    @property
    def explanation(self) -> str:
        """The words after the claim."""
        return "; ".join((self.reasons, *self.caveats)) if self.caveats else self.reasons

    @property
    def sentence(self) -> str:
        """The whole sentence for a reader."""
        return f"{self.subject}{self.claim}{self.explanation}"

    def exploratory(self, why: str) -> Verdict:
        """The same, of what may have been chosen knowing an earlier answer; of what cannot be told, nothing is said."""
        if self.decision == Decision.UNTOLD:
            return self
        return dataclasses.replace(self, is_exploratory=True, premises=(f"exploratory: {why}", *self.premises))


def untold(name: str, reasons: str) -> Verdict:
    """The verdict where there is none, with the words that follow it."""
    return Verdict(name=name, decision=Decision.UNTOLD, claim=Decision.UNTOLD, reasons=reasons)


def judge(name: str, comparisons: Comparisons, found: Climb, smallest_effect: float | None) -> Verdict:
    """What may be said of a configuration by its climb: the highest rung that it reached, and what is not shown above it.

    ``smallest_effect`` is the least that matters, in points, as it was declared before the test split was opened; None: nothing
    was declared, so the absence of an effect is not claimed.
    """
    n = max((comparison.n for comparison in comparisons.values()), default=0)
    if n < FEWEST_SEEDS:
        return untold(name, f" (n = {n}): a verdict takes {FEWEST_SEEDS} seeds or more")
    if not found.p_values:
        return untold(name, f": {_missing(LADDER[0], comparisons)}")
    rungs = [_rung(rung, comparisons, p_value) for rung, p_value in zip(LADDER, found.p_values, strict=False)]
    if found.decision == Decision.HARMS:
        losses = _gains(tried(LADDER[0], comparisons))
        return Verdict(name=name, decision=Decision.HARMS, claim=Decision.HARMS, reasons=f": {losses} (n = {n})")
    decision, held = found.decision, "; ".join(rungs[: found.height])
    if decision == Decision.HELPS:
        return Verdict(name=name, decision=decision, claim=decision, reasons=f": {held}", beaten=_beaten(found, comparisons))
    failed = LADDER[found.height]
    tested = rungs[found.height] if found.height < len(rungs) else _missing(failed, comparisons)
    absent = _absence(tried(failed, comparisons).values(), found.share, smallest_effect)
    if found.height:
        claim = LADDER[found.height - 1].claim
        reasons = f" (rung {found.height} of {len(LADDER)}): {held}. Not shown above it: "
        reasons += f"{failed.claim}: {tested}{f', {absent}' if absent else ''}"
    elif absent:
        decision, claim, reasons = Decision.ABSENT, absent, f" over the backbone: {tested}"
    else:
        claim, reasons = decision, f" to be {failed.claim}: {tested}"
    return Verdict(name=name, decision=decision, claim=claim, reasons=reasons, beaten=_beaten(found, comparisons))


def _beaten(found: Climb, comparisons: Comparisons) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rival.control for rung in LADDER[: found.height] for rival in tried(rung, comparisons)))


def _rung(rung: Rung, comparisons: Comparisons, p_value: float) -> str:
    """What was found on a rung that was tried: its gains, their p-value, and the controls of it that were not run."""
    found, missing = tried(rung, comparisons), _missing(rung, comparisons)
    n = min(tested.n for tested in found.values())
    return f"{_gains(found)} (n = {n}, {p_text(p_value)}{f'; {missing}' if missing else ''})"


def _gains(found: Comparisons) -> str:
    return ", ".join(f"{100 * tested.mean:+.1f} points{_between(tested)} over {rival}" for rival, tested in found.items())


def _missing(rung: Rung, comparisons: Comparisons) -> str:
    were_run = {rival.control for rival in comparisons}
    names = [control for control in rung.controls if control not in were_run]
    return f"not tried: {', '.join(names)}" if names else ""


def _absence(tested: Collection[Comparison], share: int, smallest_effect: float | None) -> str:
    """That gains are shown to be small; empty where they are not, or where what is small was not declared."""
    if smallest_effect is None or not tested:
        return ""
    p_value = max(comparison.p_as_large(smallest_effect / 100) for comparison in tested)
    return f"no effect as large as {smallest_effect:g} points" if p_value * share <= LEVEL else ""


def _between(tested: Comparison) -> str:
    return "" if tested.interval is None else f" [{100 * tested.interval.low:+.1f}, {100 * tested.interval.high:+.1f}]"
