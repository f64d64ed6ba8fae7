"""What a confirmation has found: regulation beside each control on the test set, and what may be said of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import in_order
from emoreg.formatting import control_name, p_text
from emoreg.results.analysis import Estimate, estimate
from emoreg.results.ladder import (
    LADDER,
    LEVEL,
    ON_LADDER,
    Climb,
    Comparisons,
    Decision,
    Verdict,
    climb,
    judge,
    tried,
    untold,
)
from emoreg.results.plan import Chosen, Opening
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import Comparison

UNTUNED = "controls at the settings of the tuned method: mechanism, not a claim that tuning was fair"
"""What every verdict begins with: no control has had a search of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """One chosen configuration, as regulation or as a control, on the test set.

    Attributes:
        accuracy: over the seeds that have finished.
        comparison: regulation against this control over the seeds that both have finished; None for regulation itself, or
            without such a seed.
    """

    chosen: Chosen
    control: str
    accuracy: Estimate
    comparison: Comparison | None

    @property
    def is_exploratory(self) -> bool:
        """Whether it is compared with what no verdict depends on."""
        return self.control not in ON_LADDER


def confirmed_rows(opening: Opening, records: Mapping[str, TrialRecord]) -> list[Confirmed]:
    """What an opening has found: each configuration beside its controls. Nothing before the opening is complete.

    Who looks in between and stops where he likes what he sees would make false claims more often than the statistics allow for.
    """
    if not opening.is_complete(records):
        return []
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    for trial in opening.trials:
        record = records[trial.identity]
        if record.status == "finished" and record.test_accuracy is not None:
            accuracies.setdefault((trial.chosen, trial.control), {})[trial.seed] = record.test_accuracy
    num_rows = sum(control != "regulated" for _, control in accuracies)
    rows = []
    for found in opening.chosen:
        regulated = accuracies.get((found.identity, "regulated"), {})
        for control in in_order(control for identity, control in accuracies if identity == found.identity):
            by_seed = accuracies[found.identity, control]
            gains = {seed: regulated[seed] - accuracy for seed, accuracy in by_seed.items() if seed in regulated}
            comparison = Comparison(gains, num_rows) if gains and control != "regulated" else None
            accuracy = estimate([*by_seed.values()])
            rows.append(Confirmed(chosen=found, control=control, accuracy=accuracy, comparison=comparison))
    return rows


def verdicts(opening: Opening, rows: Sequence[Confirmed], records: Mapping[str, TrialRecord]) -> dict[str, Verdict]:
    """What may be said of each chosen configuration, by its identity: nothing before the opening is complete.

    Nothing either where regulation did not finish a seed: to leave that seed out would be to choose by the outcome. A control
    that did not is compared on its other seeds, and the verdict has a caveat.
    """
    if not opening.is_complete(records):
        num_ended = sum(trial.identity in records for trial in opening.trials)
        why = f" yet: {num_ended} of {len(opening.trials)} planned trials have ended"
        return {found.identity: untold(found.name, why) for found in opening.chosen}
    ladders: dict[str, dict[str, Comparison]] = {found.identity: {} for found in opening.chosen}
    for row in rows:
        if row.comparison is not None:
            ladders[row.chosen.identity][row.control] = row.comparison
    climbs, turning = climb(ladders), _turning_seeds(opening.seeds, ladders)
    found_of = {}
    for found in opening.chosen:
        missing = _missing_seeds(opening, found, records)
        if "regulated" in missing:
            found_of[found.identity] = untold(found.name, f": {missing['regulated']}, which cannot be left out")
            continue
        comparisons = ladders[found.identity]
        verdict = judge(found.name, comparisons, climbs[found.identity], opening.smallest_effect)
        caveats = [f"{words}, which are missing here" for words in missing.values()]
        caveats += [*_turned(turning[found.identity]), *_disagreeing(comparisons, climbs[found.identity])]
        premises = () if verdict.decision == Decision.UNTOLD else (UNTUNED,)
        found_of[found.identity] = dataclasses.replace(verdict, premises=premises, caveats=tuple(caveats))
    return found_of


def _missing_seeds(opening: Opening, found: Chosen, records: Mapping[str, TrialRecord]) -> dict[str, str]:
    """In words, the seeds that a configuration did not finish, by control: they diverged, or broke."""
    own = [trial for trial in opening.trials if trial.chosen == found.identity]
    ends = {"pruned": "diverged", "failed": "failed"}
    lost = Counter((trial.control, ends[status]) for trial in own if (status := records[trial.identity].status) in ends)
    words: dict[str, str] = {}
    for (control, end), count in lost.items():
        also = f"{words[control]}, " if control in words else ""
        words[control] = f"{also}{control_name(control)} {end} on {count} of {len(opening.seeds)} seeds"
    return words


def _turning_seeds(seeds: Sequence[int], ladders: Mapping[str, Comparisons]) -> dict[str, list[int]]:
    """The seeds without which a configuration would stand on another rung, one left out at a time."""
    whole, turning = climb(ladders), {identity: list[int]() for identity in ladders}
    for seed in seeds:
        without = {
            identity: {control: found.without(seed) for control, found in comparisons.items()}
            for identity, comparisons in ladders.items()
        }
        for identity, found in climb(without).items():
            if (found.height, found.decision) != (whole[identity].height, whole[identity].decision):
                turning[identity].append(seed)
    return turning


def _turned(seeds: Sequence[int]) -> Iterator[str]:
    if seeds:
        names = [*map(str, seeds[:3]), *([f"any of {len(seeds) - 3} others"] if len(seeds) > 3 else [])]
        yield f"hangs on single seeds: leaving out {' or '.join(names)} turns it"


def _disagreeing(comparisons: Comparisons, found: Climb) -> Iterator[str]:
    """The gains of rungs that hold, but not by the sign-flip test, on the level that they were tested on."""
    held = {control: comparison for rung in LADDER[: found.height] for control, comparison in tried(rung, comparisons).items()}
    for control, comparison in held.items():
        flipped = comparison.p_sign_flip
        if flipped is not None and flipped * found.share > LEVEL:
            yield f"the sign-flip test does not show it over {control} ({p_text(min(1.0, flipped * found.share))})"
