"""What a confirmation has found: regulation beside each control on the test set, and what may be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import in_order
from emoreg.results.analysis import Estimate, estimate
from emoreg.results.plan import Chosen, Opening
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import Comparison, Decision, Verdict, compare, judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """One chosen configuration, as regulation or as a control, on the test set, over the seeds that have finished.

    ``comparison`` is regulation against this control; None for regulation itself.
    """

    chosen: Chosen
    control: str
    accuracy: Estimate
    comparison: Comparison | None


def confirmed_rows(opening: Opening, records: Mapping[str, TrialRecord]) -> list[Confirmed]:
    """What an opening has found: each configuration beside its controls, compared over the seeds that both have finished.

    All comparisons of the opening are one family. None are made before it is complete: who tests in between and stops where he
    likes what he sees would make false claims more often than the statistics allow for.
    """
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    for trial in opening.trials:
        record = records.get(trial.identity)
        if record is not None and record.status == "finished" and record.test_accuracy is not None:
            accuracies.setdefault((trial.chosen, trial.control), {})[trial.seed] = record.test_accuracy
    family: dict[tuple[str, str], list[float]] = {}
    for (identity, control), by_seed in accuracies.items():
        regulated = accuracies.get((identity, "regulated"), {})
        common = sorted(regulated.keys() & by_seed.keys())
        if control != "regulated" and common:
            family[identity, control] = [regulated[seed] - by_seed[seed] for seed in common]
    compared = compare(family) if opening.is_complete(records) else {}
    return [
        Confirmed(
            chosen=found,
            control=control,
            accuracy=estimate([*accuracies[found.identity, control].values()]),
            comparison=compared.get((found.identity, control)),
        )
        for found in opening.chosen
        for control in in_order(control for identity, control in accuracies if identity == found.identity)
    ]


def verdicts(opening: Opening, rows: Sequence[Confirmed], records: Mapping[str, TrialRecord]) -> dict[str, Verdict]:
    """What may be said of each chosen configuration, by its identity: nothing before the opening is complete.

    Nothing either where regulation diverged on a seed: to leave that seed out would be to choose by the outcome. A control that
    diverged is compared on its other seeds, which flatters it: the verdict has a caveat.
    """
    if opening.is_complete(records):
        return {found.identity: _verdict(opening, found, rows, records) for found in opening.chosen}
    num_ended = sum(trial.identity in records for trial in opening.trials)
    why = f" yet: {num_ended} of {len(opening.trials)} planned trials have ended"
    return {found.identity: Verdict(name=found.name, decision=Decision.NOTHING, reasons=why) for found in opening.chosen}


def _verdict(opening: Opening, found: Chosen, rows: Sequence[Confirmed], records: Mapping[str, TrialRecord]) -> Verdict:
    own = [trial for trial in opening.trials if trial.chosen == found.identity]
    diverged = Counter(trial.control for trial in own if records[trial.identity].status == "pruned")
    of_seeds = f"of {len(opening.seeds)} seeds, which"
    if diverged["regulated"]:
        why = f": regulation diverged on {diverged['regulated']} {of_seeds} cannot be left out"
        return Verdict(name=found.name, decision=Decision.NOTHING, reasons=why)
    comparisons = {row.control: row.comparison for row in rows if row.chosen == found and row.comparison is not None}
    caveats = [f"{control} diverged on {count} {of_seeds} are left out" for control, count in diverged.items() if count]
    return judge(found.name, comparisons, caveats)
