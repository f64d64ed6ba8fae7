"""What a report concludes, and what it cannot: verdicts, gains and accuracies in words and tables."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from emoreg.config import in_order
from emoreg.config.controls import LADDER, ON_LADDER
from emoreg.formatting import control_name, counted, format_params, p_cell
from emoreg.report.reproduce import confirm_command
from emoreg.report.tables import Cell, Row, Table, listed, numbers, percent, signed, texts
from emoreg.results.across import across
from emoreg.results.confirmation import Confirmed
from emoreg.results.ladder import Decision, Verdict, untold
from emoreg.results.plan import Chosen, Opening
from emoreg.results.statistics import FEWEST_SEEDS, Comparison, Estimate
from emoreg.results.study import StudyResults

Named = Mapping[str, StudyResults]
"""Studies, by what each is called beside the others."""


def verdicts_of(study: StudyResults) -> list[Verdict]:
    """What may be said of the study, which is nothing before a confirmation."""
    if study.verdicts:
        return [*study.verdicts.values()]
    if study.opening is None and any(row.test_accuracy is not None for row in study.confirming.trials if row.role == "confirm"):
        why = ": what the confirmation fixed before it opened the test set is missing."
    elif study.opening is not None or study.confirmation is not None:
        why = f": no trial of the confirmation has finished. `{confirm_command(study)}` goes on with it."
    else:
        why = (
            ": no confirmation yet. The accuracies below were selected on validation and flatter. "
            f"`{confirm_command(study)}` gives the answer."
        )
    return [untold("", why)]


def notes(study: StudyResults) -> list[str]:
    """What stands between the records and a conclusion: what cannot be read, is missing, or was done more than once."""
    found = [problem for home in study.with_confirmation for problem in home.problems]
    if not any(row.status == "finished" for row in study.trials):
        found.append("No trial has finished: nothing can be concluded of any configuration, only of what the study cost.")
    found += _control_notes(study)
    if study.unplanned_openings:
        opened = [f"{row.identity} ({row.ended[:10]})" for row in study.unplanned_openings]
        found.append(
            f"The test set was opened outside of a confirmation's plan too, by {listed(opened)}: what was chosen after that "
            "may have been chosen knowing it."
        )
    if study.opening is not None:
        found += _opening_notes(study, study.opening)
    failed = [row for row in study.trials if row.status == "failed"]
    if failed:
        reasons = Counter(row.message or "no reason recorded" for row in failed)
        why = listed([f"{reason} ({count})" for reason, count in reasons.most_common()])
        found.append(f"{len(failed)} of {len(study.trials)} trials failed and say nothing of their configuration: {why}.")
    return found


def _control_notes(study: StudyResults) -> Iterator[str]:
    planned = dict.fromkeys((trial.backbone, trial.control) for trial in study.config.control_trials())
    if planned and not study.controls:
        yield (
            "No control has finished: whether a gain on validation comes from emotional experience, from a second encoder or "
            "from chance cannot be told."
        )
        return
    there = {(row.backbone, row.control) for row in study.controls}
    missing = [f"{control_name(control)} of {backbone}" for backbone, control in planned if (backbone, control) not in there]
    if missing:
        yield (
            f"Controls without a finished trial: {listed(missing)}. What regulation gains over them on validation cannot be "
            "told; running the study again runs what is missing."
        )
    if study.controls and max(row.accuracy.n for row in study.controls) == 1:
        yield (
            "The controls on validation have run on a single seed, which tells nothing about chance: their differences have no "
            "interval. `--control-seeds 0 1 2` adds some."
        )


def _opening_notes(study: StudyResults, opening: Opening) -> Iterator[str]:
    records, openings, command = study.confirming.by_identity, study.confirming.openings, confirm_command(study)
    num_trials, num_seeds = opening.num_trials, len(opening.seeds)
    num_open = len({trial.identity for trial in opening.every_trial} - records.keys())
    if num_open:
        yield (
            f"{num_open} of {num_trials} trials of the confirmation have not ended: `{command}` runs what is missing. Before "
            "all have, nothing is compared and no verdict given."
        )
    names = {found.identity: found.name for found in opening.chosen}
    every = {(trial.chosen, trial.identity): trial for trial in opening.every_trial}
    ended = [(trial, records[trial.identity].status) for trial in every.values() if trial.identity in records]
    for status, what in {
        "failed": f"failed and count nowhere; `{command}` runs them again",
        "pruned": "diverged, for their loss was not finite, and are not run again",
    }.items():
        lost = Counter(f"{control_name(trial.control)} of {names[trial.chosen]}" for trial, end in ended if end == status)
        if lost:
            which = listed([f"{name} ({count})" for name, count in lost.items()])
            yield f"{lost.total()} of {num_trials} trials of the confirmation {what}: {which}."
    if num_seeds < FEWEST_SEEDS:
        yield (
            f"The confirmation has {counted(num_seeds, 'seed')}, which cannot tell: there is neither an interval nor a verdict "
            f"below {FEWEST_SEEDS}."
        )
    if opening.smallest_effect is None:
        yield "No smallest effect was declared before the test set was opened: the absence of one is not claimed."
    if len(openings) > 1:
        yield (
            f"The test set was opened {len(openings)} times ({', '.join(item.opened[:10] for item in openings)}): what is "
            "shown is the last time, and it may have been chosen knowing an earlier one's answer."
        )
    elif study.exploratory:
        yield f"What is shown is exploratory: {study.exploratory}."


def paper_table(studies: Named) -> Table | None:
    """Methods as rows, tasks and backbones as columns, test accuracies as cells; None without a confirmation."""
    columns: list[tuple[str, str, dict[str, Estimate]]] = []
    for label, study in studies.items():
        for chosen, rows in itertools.groupby(study.confirmed, key=lambda row: row.chosen):
            task = _task(study, chosen)
            above = task if len(studies) == 1 else f"{label}: {task}"
            columns.append((above, chosen.name, {row.control: row.accuracy for row in rows if row.rank == 1}))
    if not columns:
        return None
    best = [max(accuracy.mean for accuracy in found.values()) for _, _, found in columns]
    cells: list[Row] = [
        (control_name(control), *(_accuracy(found.get(control), top) for (_, _, found), top in zip(columns, best, strict=True)))
        for control in in_order(control for _, _, found in columns for control in found)
    ]
    return Table(
        caption="Test accuracy, %",
        above=[(above, len([*same])) for above, same in itertools.groupby(above for above, _, _ in columns)],
        columns=(*texts("method"), *numbers(*(name for _, name, _ in columns))),
        groups=[("", cells)],
        note="Mean over the confirmation’s seeds ± half of its 95 % confidence interval (Student’s t). Bold: the "
        "highest mean of a column, which by itself is no verdict.",
    )


def gains_table(study: StudyResults) -> Table | None:
    """What regulation gains over each control on the test set, each at its own best if tuned; None without a confirmation."""
    of = ", each at its own best" if study.same_settings else ""
    return _gains(
        study,
        study.confirmed,
        caption=f"What regulation gains over each control{of}, on the test set",
        note="p is one-sided and of its row alone: a rung holds by the ladder’s p, which the verdict says. It may hold where "
        "an interval reaches 0, for the ladder tests one rung after the other, and the intervals hold for all rows at once. "
        "P(better): how often regulation is above the control with the same seed. What stands on no rung is exploratory."
        + (" A control with a search of its own stands here at the two best of it: a rung needs both." if of else ""),
    )


def mechanism_table(study: StudyResults) -> Table | None:
    """The same at regulation's settings; None where controls have no searches of their own, so that it would be the same."""
    return _gains(
        study,
        study.same_settings,
        caption="The mechanism: what regulation gains over controls at its own settings",
        note="The settings were chosen for regulation: nothing is claimed from this table. It tells what one change does.",
    )


def _gains(study: StudyResults, found: Sequence[Confirmed], *, caption: str, note: str) -> Table | None:
    groups: dict[str, list[Row]] = {}
    has_tuned = any(row.is_tuned for row in found)
    for row in found:
        if row.comparison is not None:
            title = f"{row.chosen.name}, {_task(study, row.chosen)}"
            name = row.rival.label + ("" if row.is_tuned or not has_tuned else ", not tuned")
            groups.setdefault(title, []).append((name, rung_of(row.control), *_gain(row.comparison)))
    if not groups:
        return None
    titles = ("gain, points", "95 % interval, all rows together", "p (t)", "p (sign flip)", "P(better), %", "seeds n")
    return Table(caption=caption, columns=(*texts("over", "rung"), *numbers(*titles)), groups=[*groups.items()], note=note)


def chosen_table(study: StudyResults) -> Table | None:
    """The configurations that were confirmed, as the search found them."""
    if study.opening is None:
        return None
    rows: list[Row] = []
    for found in study.opening.chosen:
        shown = ", ".join(format_params(found.params))
        rows.append((found.name, shown, Cell(percent(found.val_accuracy), n=1), found.identity))
        for tuned in (item for item in study.opening.tuned if item.chosen == found.identity):
            name, shown = f"{found.name}, {tuned.rival.label}", ", ".join(format_params(tuned.params))
            rows.append((name, shown or "nothing to search", Cell(percent(tuned.val_accuracy), n=1), tuned.identity))
    return Table(
        caption="What was confirmed",
        columns=(*texts("configuration", "what the search chose"), *numbers("validation accuracy, %"), ("trial", "code")),
        groups=[("", rows)],
        note="Fixed before the confirmation opened the test set. The validation accuracy is the best of many, so it flatters.",
    )


def controls_table(study: StudyResults) -> Table | None:
    """Regulation as configured beside its controls on validation; None where no control has finished."""
    groups: dict[str, list[Row]] = {backbone: [] for backbone in study.backbones}
    for row in study.controls:
        gain = Cell("")
        if row.gain is not None:
            gain = Cell(f"+{row.gain}" if row.gain.mean >= 0 else str(row.gain).replace("-", "−"), n=row.gain.n)
        accuracy = Cell(str(row.accuracy), n=row.accuracy.n)
        groups.setdefault(row.backbone, []).append((control_name(row.control), accuracy, gain))
    if not any(groups.values()):
        return None
    return Table(
        caption="Regulation as configured, beside its controls, on validation",
        columns=(*texts("trial"), *numbers("validation accuracy, %", "regulation gains, points")),
        groups=[(name, rows) for name, rows in groups.items() if rows],
        note="Nothing here was selected, and the test set was not touched. ± 95 % confidence over seeds (Student’s t), gains "
        "paired by seed; none for a single seed. No correction for many comparisons: an indication, no verdict.",
    )


def verdicts_table(studies: Named) -> Table:
    """What may be said of each configuration of several studies."""
    groups = []
    there = {row.control for study in studies.values() for row in study.confirmed}
    shown = [control for control in ON_LADDER if control in there]
    for label, study in studies.items():
        rows: list[Row] = []
        by_chosen = {(row.chosen.identity, row.control): row for row in study.confirmed if row.rank == 1}
        for found in study.opening.chosen if study.opening is not None else ():
            regulated, verdict = by_chosen.get((found.identity, "regulated")), study.verdicts[found.identity]
            accuracy = _accuracy(None if regulated is None else regulated.accuracy, math.inf)
            gains = (_points(by_chosen.get((found.identity, control))) for control in shown)
            claim = Cell(f"{verdict.claim}{', exploratory' if verdict.is_exploratory else ''}", decision=verdict.decision)
            rows.append((f"{found.name}, {_task(study, found)}", claim, accuracy, *gains))
        nothing: Row = ("no confirmation", Cell(Decision.UNTOLD, decision=Decision.UNTOLD), *[""] * (1 + len(shown)))
        groups.append((label, rows or [nothing]))
    titles = ("test accuracy, %", *(f"gain over {control_name(control)}, points" for control in shown))
    return Table(
        caption="Verdicts by study",
        columns=(*texts("configuration", "regulation"), *numbers(*titles)),
        groups=groups,
        note="All ladders of this page are corrected for each other (Holm): alone, a study may stand on another rung than "
        "beside others. Studies are set side by side, not tested against each other.",
    )


def across_table(studies: Named) -> Table | None:
    """What regulation gains over each control, over all studies; None where no two configurations are confirmed."""
    rows: list[Row] = [
        (
            control_name(row.control),
            rung_of(row.control),
            signed(row.gain.mean),
            f"{signed(row.gain.interval.low)} to {signed(row.gain.interval.high)}",
            f"{100 * row.gain.deviation:.1f}",
            f"{percent(row.share_above)} [{percent(row.share_interval.low)} to {percent(row.share_interval.high)}]",
            str(row.gain.num_units),
            str(row.num_seeds),
        )
        for row in across([*studies.values()])
    ]
    if not rows:
        return None
    titles = ("gain, points", "95 % interval", "sd between, points", "P(better), %", "configurations", "seeds n")
    return Table(
        caption="What regulation gains, over all studies",
        columns=(*texts("over", "rung"), *numbers(*titles)),
        groups=[("", rows)],
        note="Random effects over the best configuration of each backbone, task and study: the mean of gains that differ from "
        "one to the other (sd between: DerSimonian and Laird), with the interval of Hartung and Knapp. P(better): how often "
        "regulation is above the control with the same seed, with the interval of Korn and Graubard for seeds in clusters. "
        "Each interval is for its row alone, and no verdict hangs on it. Configurations with trials of a control in common, "
        "such as plain on one task, are taken as independent, which may make intervals too short.",
    )


def _task(study: StudyResults, chosen: Chosen) -> str:
    """The task that a confirmed configuration was tested on, which may be searched."""
    return str(chosen.params.get("task.name", study.config.trial.task.name))


def _accuracy(found: Estimate | None, top: float) -> Cell:
    return Cell("–") if found is None else Cell(str(found), n=found.n, is_best=found.mean == top)


def rung_of(control: str) -> str:
    """On which rung of the ladder a control stands."""
    rungs = [number for number, rung in enumerate(LADDER, 1) if control in rung.controls]
    return f"{rungs[0]} of {len(LADDER)}" if rungs else "exploratory"


def _gain(found: Comparison) -> tuple[str, ...]:
    flipped, share = found.p_sign_flip, found.share_interval
    return (
        signed(found.mean),
        _interval(found),
        p_cell(found.p_better),
        "–" if flipped is None else p_cell(flipped),
        percent(found.share_above) + ("" if share is None else f" [{percent(share.low)} to {percent(share.high)}]"),
        str(found.n),
    )


def _points(row: Confirmed | None) -> Cell:
    found = None if row is None else row.comparison
    if found is None:
        return Cell("–")
    interval = f" [{_interval(found)}]" if found.interval is not None else ""
    return Cell(f"{signed(found.mean)}{interval}", n=found.n)


def _interval(found: Comparison) -> str:
    return "–" if found.interval is None else f"{signed(found.interval.low)} to {signed(found.interval.high)}"
