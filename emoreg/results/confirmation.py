"""Regulation beside its controls: on validation and, of a confirmation, on the test set, and what may then be said of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import in_order
from emoreg.config.controls import LADDER, ON_LADDER
from emoreg.formatting import p_text
from emoreg.results.ladder import (
    LEVEL,
    Climb,
    Comparisons,
    Decision,
    Verdict,
    climb,
    judge,
    tried,
    untold,
)
from emoreg.results.looks import ONLY_LOOK, Look
from emoreg.results.plan import Chosen, Opening, PlannedTrial, Rival
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import Comparison, Estimate, estimate

REGULATED = Rival("regulated")
UNTUNED = "controls at the settings of the tuned method: mechanism, not a claim that tuning was fair"
"""What a verdict begins with where no control that it depends on has had a search of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRow:
    """One control of one backbone, on the study's fixed configuration: nothing here was selected.

    Attributes:
        control: ``regulated`` is regulation itself.
        accuracy: validation accuracy over the seeds that finished.
        gain: regulation minus this control, paired by seed; None for regulation itself, or without a common seed.
    """

    backbone: str
    control: str
    accuracy: Estimate
    gain: Estimate | None


def control_rows(records: Iterable[TrialRecord]) -> list[ControlRow]:
    """Regulation, then each control in the order of ``CONTROLS``, by backbone, with what regulation gains over it."""
    by_backbone: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        if record.role == "control" and record.status == "finished" and record.val_accuracy is not None:
            by_control = by_backbone.setdefault(record.backbone, {})
            by_control.setdefault(record.control, {})[record.seed] = record.val_accuracy
    rows = []
    for backbone, by_control in sorted(by_backbone.items()):
        regulated = by_control.get("regulated", {})
        for control in in_order(by_control):
            accuracies = by_control[control]
            gains = [regulated[seed] - accuracy for seed, accuracy in accuracies.items() if seed in regulated]
            gain = estimate(gains) if gains and control != "regulated" else None
            rows.append(ControlRow(backbone=backbone, control=control, accuracy=estimate([*accuracies.values()]), gain=gain))
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """One chosen configuration, as regulation or as a control, on the test set.

    Attributes:
        accuracy: over the seeds that have finished.
        comparison: regulation against this control over the seeds that both have finished; None for regulation itself, or
            without such a seed.
        is_tuned: whether it is at one of the best of its own search; else it is at the settings of the chosen one.
        rank: in that search, from 1.
    """

    chosen: Chosen
    control: str
    accuracy: Estimate
    comparison: Comparison | None
    is_tuned: bool = False
    rank: int = 1

    @property
    def rival(self) -> Rival:
        """What regulation is compared with."""
        return Rival(self.control, self.rank)

    @property
    def is_exploratory(self) -> bool:
        """Whether it is compared with what no verdict depends on."""
        return self.control not in ON_LADDER


def claimed_trials(opening: Opening) -> tuple[PlannedTrial, ...]:
    """The trials that verdicts rest on: each control at its own best ones, or at the chosen settings where it was not tuned."""
    tuned = {(trial.chosen, trial.control) for trial in opening.tuned_trials}
    same = (trial for trial in opening.trials if (trial.chosen, trial.control) not in tuned)
    return (*same, *opening.tuned_trials)


def confirmed_rows(opening: Opening, records: Mapping[str, TrialRecord], *, same_settings: bool = False) -> list[Confirmed]:
    """What an opening has found: each configuration beside its controls. Nothing before the opening is complete.

    Who looks in between and stops where he likes what he sees would make false claims more often than the statistics allow for.

    With ``same_settings`` every control is that at the settings of the configuration, which tells the mechanism; else each is
    at its own best, where it was tuned.
    """
    if not opening.is_complete(records):
        return []
    accuracies: dict[tuple[str, Rival], dict[int, float]] = {}
    for trial in opening.trials if same_settings else claimed_trials(opening):
        record = records[trial.identity]
        if record.status == "finished" and record.test_accuracy is not None:
            accuracies.setdefault((trial.chosen, trial.rival), {})[trial.seed] = record.test_accuracy
    num_rows = sum(rival != REGULATED for _, rival in accuracies)
    look = Look(opening.looks[0] / opening.looks[-1], is_first=opening.is_stopped) if opening.looks else ONLY_LOOK
    tuned = set() if same_settings else {(trial.chosen, trial.control) for trial in opening.tuned_trials}
    rows = []
    for found in opening.chosen:
        regulated = accuracies.get((found.identity, REGULATED), {})
        rivals = [rival for identity, rival in accuracies if identity == found.identity]
        order = in_order(rival.control for rival in rivals)
        for rival in sorted(rivals, key=lambda rival: (order.index(rival.control), rival.rank)):
            control, by_seed = rival.control, accuracies[found.identity, rival]
            gains = {seed: regulated[seed] - accuracy for seed, accuracy in by_seed.items() if seed in regulated}
            row = Confirmed(
                chosen=found,
                control=control,
                accuracy=estimate([*by_seed.values()]),
                comparison=Comparison(gains, num_rows, look) if gains and control != "regulated" else None,
                is_tuned=(found.identity, control) in tuned,
                rank=rival.rank,
            )
            rows.append(row)
    return rows


def ladders_of(rows: Sequence[Confirmed]) -> dict[str, Comparisons]:
    """What each configuration was compared with, by its identity."""
    ladders: dict[str, dict[Rival, Comparison]] = {row.chosen.identity: {} for row in rows}
    for row in rows:
        if row.comparison is not None:
            ladders[row.chosen.identity][row.rival] = row.comparison
    return dict(ladders)


def verdicts(
    opening: Opening, rows: Sequence[Confirmed], records: Mapping[str, TrialRecord], beside: Sequence[Comparisons] = ()
) -> dict[str, Verdict]:
    """What may be said of each chosen configuration by the rows of ``claimed_trials``, by its identity.

    It is corrected for the ladders of all of them and of those that are shown ``beside`` them, in other studies.

    Nothing before the opening is complete, nor where regulation did not finish a seed: to leave that seed out would be to
    choose by the outcome. A control that did not is compared on its other seeds, and the verdict has a caveat.
    """
    if not opening.is_complete(records):
        every = {trial.identity for trial in opening.every_trial}
        why = f" yet: {len(every & records.keys())} of {len(every)} planned trials have ended"
        return {found.identity: untold(found.name, why) for found in opening.chosen}
    ladders: dict[str, Comparisons] = {found.identity: {} for found in opening.chosen} | ladders_of(rows)
    others = {f"beside {number}": found for number, found in enumerate(beside)}
    climbs, turning = climb({**ladders, **others}), _turning_seeds(opening.seeds, ladders, others)
    found_of = {}
    for found in opening.chosen:
        missing = _missing_seeds(opening, found, records)
        if REGULATED in missing:
            found_of[found.identity] = untold(found.name, f": {missing[REGULATED]}, which cannot be left out")
            continue
        comparisons = ladders[found.identity]
        verdict = judge(found.name, comparisons, climbs[found.identity], opening.smallest_effect)
        caveats = [f"{words}, which are missing here" for words in missing.values()]
        if opening.is_stopped:
            caveats.append(f"it was clear at the first of two looks, after {opening.looks[0]} of {opening.looks[-1]} seeds")
        caveats += [*_turned(turning[found.identity]), *_disagreeing(comparisons, climbs[found.identity])]
        premises = () if verdict.decision == Decision.UNTOLD else _premises([row for row in rows if row.chosen == found])
        found_of[found.identity] = dataclasses.replace(verdict, premises=premises, caveats=tuple(caveats))
    return found_of


def answers_early(opening: Opening, records: Mapping[str, TrialRecord]) -> bool:
    """Whether the first of two looks gives the answer, so that no other seed is needed.

    It does where every configuration stands on the last rung that was tried, or on one before it and is shown to be below a
    rival of the next, or is shown to be below its backbone, or to have no effect as large as the smallest one. Whatever ends a
    plan early, its claims hold: its p-values and intervals are those of both looks.
    """
    first = opening.at_first_look()
    rows = confirmed_rows(first, records)
    climbs = climb(ladders_of(rows))
    return all(
        verdict.decision in (Decision.HARMS, Decision.ABSENT)
        or (verdict.decision != Decision.UNTOLD and _goes_no_further(climbs[identity]))
        for identity, verdict in verdicts(first, rows, records).items()
    )


def _goes_no_further(found: Climb) -> bool:
    return found.height == len(found.p_values) or (found.height > 0 and found.is_blocked)


def _premises(rows: Sequence[Confirmed]) -> tuple[str, ...]:
    """What a verdict on one configuration begins with: which controls that it depends on were not tuned as regulation was."""
    compared = [row for row in rows if row.control in ON_LADDER]
    untuned = [row.control for row in compared if not row.is_tuned]
    if len(untuned) == len(compared):
        return (UNTUNED,)
    return (f"not tuned alike: {', '.join(untuned)} at the settings of the tuned method",) if untuned else ()


def _missing_seeds(opening: Opening, found: Chosen, records: Mapping[str, TrialRecord]) -> dict[Rival, str]:
    """In words, the seeds that a configuration did not finish, as regulation or as a rival: they diverged, or broke."""
    own = [trial for trial in claimed_trials(opening) if trial.chosen == found.identity]
    ends = {"pruned": "diverged", "failed": "failed"}
    lost = Counter((trial.rival, ends[status]) for trial in own if (status := records[trial.identity].status) in ends)
    words: dict[Rival, str] = {}
    for (rival, end), count in lost.items():
        also = f"{words[rival]}, " if rival in words else ""
        words[rival] = f"{also}{rival.label} {end} on {count} of {len(opening.seeds)} seeds"
    return words


def _turning_seeds(
    seeds: Sequence[int], ladders: Mapping[str, Comparisons], others: Mapping[str, Comparisons]
) -> dict[str, list[int]]:
    """The seeds without which a configuration would stand on another rung beside the others, one left out at a time."""
    whole, turning = climb({**ladders, **others}), {identity: list[int]() for identity in ladders}
    for seed in seeds:
        without = {
            identity: {rival: found.without(seed) for rival, found in comparisons.items()}
            for identity, comparisons in ladders.items()
        }
        climbs = climb({**without, **others})
        for identity in ladders:
            found = climbs[identity]
            if (found.height, found.decision) != (whole[identity].height, whole[identity].decision):
                turning[identity].append(seed)
    return turning


def _turned(seeds: Sequence[int]) -> Iterator[str]:
    if seeds:
        names = [*map(str, seeds[:3]), *([f"any of {len(seeds) - 3} others"] if len(seeds) > 3 else [])]
        yield f"hangs on single seeds: leaving out {' or '.join(names)} turns it"


def _disagreeing(comparisons: Comparisons, found: Climb) -> Iterator[str]:
    """The gains of rungs that hold, but not by the sign-flip test, on the level that they were tested on."""
    held = {rival: comparison for rung in LADDER[: found.height] for rival, comparison in tried(rung, comparisons).items()}
    for rival, comparison in held.items():
        flipped = comparison.p_sign_flip
        if flipped is not None and flipped * found.share > LEVEL:
            yield f"the sign-flip test does not show it over {rival} ({p_text(min(1.0, flipped * found.share))})"
