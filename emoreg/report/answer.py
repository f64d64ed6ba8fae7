"""What a report concludes, and what it cannot: verdicts, gains and accuracies in words and tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emoreg.config import CONTROLS
from emoreg.formatting import control_name, format_params
from emoreg.report.cells import Cell, Column, Group, Table, listed, percent, signed
from emoreg.report.reproduce import confirm_command
from emoreg.results.analysis import Estimate
from emoreg.results.confirmation import Chosen, Row
from emoreg.results.statistics import REQUIRED, Comparison, Says, fewest_seeds
from emoreg.results.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A sentence with a verdict: the words before it, the verdict itself, and its reasons."""

    before: str
    says: Says
    after: str

    @property
    def text(self) -> str:
        """The sentence."""
        return f"{self.before}{self.says}{self.after}"


def verdict_lines(study: Study) -> list[Line]:
    """What may be said of the study, which is nothing before a confirmation."""
    found = []
    for verdict in study.verdicts.values():
        before, _, after = verdict.sentence.partition(verdict.says)
        found.append(Line(before=before, says=verdict.says, after=after))
    if found:
        return found
    if study.looks or study.confirmation is not None:
        why = f"no trial of the confirmation has finished. `{confirm_command(study)}` goes on with it."
        return [Line(before="", says="nothing can be said", after=f": {why}")]
    why = (
        "no confirmation yet. The accuracies below were selected on validation and flatter. "
        f"`{confirm_command(study)}` gives the answer."
    )
    return [Line(before="", says="nothing can be said", after=f": {why}")]


def notes(study: Study) -> list[str]:
    """What stands between the records and a conclusion: what cannot be read, is missing, or was done more than once."""
    confirmation = study.confirmation
    found = [*study.problems, *(confirmation.problems if confirmation is not None else ())]
    if not any(row.status == "finished" for row in study.trials):
        found.append("No trial has finished: nothing can be concluded of any configuration, only of what the study cost.")
    if study.config.controls and not study.controls:
        found.append(
            "No control has finished: whether a gain on validation comes from emotional experience, from a second encoder or "
            "from chance cannot be told."
        )
    else:
        there = {(row.backbone, row.control) for row in study.controls}
        missing = [
            f"{control_name(control)} of {backbone}"
            for backbone in study.backbones
            for control in study.config.controls
            if (backbone, control) not in there
        ]
        if missing:
            found.append(
                f"Controls without a finished trial: {listed(missing)}. What regulation gains over them on validation cannot "
                "be told; running the study again runs what is missing."
            )
        if study.controls and max(row.accuracy.n for row in study.controls) == 1:
            found.append(
                "The controls on validation have run on a single seed, which tells nothing about chance: their differences "
                "have no interval. `--control-seeds 0 1 2` adds some."
            )
    found += _confirmation_notes(study)
    failed = [row for row in study.trials if row.status == "failed"]
    if failed:
        reasons = Counter(row.reason or "no reason recorded" for row in failed)
        why = listed([f"{reason} ({count})" for reason, count in reasons.most_common()])
        found.append(f"{len(failed)} of {len(study.trials)} trials failed and say nothing of their configuration: {why}.")
    return found


def _confirmation_notes(study: Study) -> list[str]:
    owner = study.confirmation or study
    found = []
    if study.opened_beside:
        opened = [f"{row.identity} ({row.ended[:10]})" for row in study.opened_beside]
        found.append(
            f"The test split was opened outside of a confirmation's plan too, by {listed(opened)}: what was chosen after that "
            "may have been chosen knowing it."
        )
    if not owner.looks:
        return found
    look = owner.looks[-1]
    by_identity = {row.identity: row for row in owner.trials}
    open_trials = [trial for trial in look.trials if trial.identity not in by_identity]
    if open_trials:
        found.append(
            f"{len(open_trials)} of {len(look.trials)} trials of the confirmation have not ended: `{confirm_command(study)}` "
            "runs what is missing. Before all have, nothing is compared and no verdict given."
        )
    names = {chosen.identity: chosen.name for chosen in look.chosen}
    for status, what in (
        ("failed", f"failed and count nowhere; `{confirm_command(study)}` runs them again"),
        ("pruned", "diverged, for their loss was not finite, and are not run again"),
    ):
        lost = Counter(
            f"{control_name(trial.control)} of {names[trial.chosen]}"
            for trial in look.trials
            if trial.identity in by_identity and by_identity[trial.identity].status == status
        )
        if lost:
            which = listed([f"{name} ({count})" for name, count in lost.items()])
            found.append(f"{lost.total()} of {len(look.trials)} trials of the confirmation {what}: {which}.")
    num_comparisons = len({(trial.chosen, trial.control) for trial in look.trials if trial.control != "regulated"})
    if len(look.seeds) == 1:
        found.append(
            "The confirmation has a single seed, which tells nothing about chance: there is no interval and no effect could "
            f"have been seen. {fewest_seeds(num_comparisons)} seeds or more can show one."
        )
    elif num_comparisons and len(look.seeds) < fewest_seeds(num_comparisons):
        found.append(
            f"With {len(look.seeds)} seeds no difference can be shown, however large, for {num_comparisons} comparisons are "
            f"made: {fewest_seeds(num_comparisons)} seeds or more can show one."
        )
    absent = [control for control in REQUIRED if control not in {row.control for row in study.confirmed}]
    if absent and study.confirmed and not open_trials:
        found.append(
            f"The confirmation lacks {listed(absent)}: without {'it' if len(absent) == 1 else 'them'} a gain cannot be told "
            "from that of a second encoder, of its pre-training on any labels, or of chance."
        )
    if len(owner.looks) > 1:
        found.append(
            f"The test split was looked at {len(owner.looks)} times ({', '.join(look.opened[:10] for look in owner.looks)}): "
            "what is shown is the last look, and it may have been chosen knowing an earlier one's answer."
        )
    return found


def paper_table(studies: Sequence[tuple[str, Study]]) -> Table | None:
    """Methods as rows, tasks and backbones as columns, test accuracies as cells; None without a confirmation.

    Args:
        studies: with what each is called; a study's name stands over its columns where there are several.
    """
    columns: list[tuple[str, str, dict[str, Estimate]]] = []
    for label, study in studies:
        by_chosen: dict[str, list[Row]] = {}
        for row in study.confirmed:
            by_chosen.setdefault(row.chosen.identity, []).append(row)
        for rows in by_chosen.values():
            task = _task(study, rows[0].chosen)
            above = task if len(studies) == 1 else f"{label}: {task}"
            columns.append((above, rows[0].chosen.name, {row.control: row.accuracy for row in rows}))
    if not columns:
        return None
    best = [max(accuracy.mean for accuracy in found.values()) for _, _, found in columns]
    return Table(
        caption="Test accuracy, %",
        above=tuple(_runs_of([above for above, _, _ in columns])),
        columns=(Column(title="method", kind="text"), *(Column(title=name) for _, name, _ in columns)),
        groups=(
            Group(
                rows=tuple(
                    (
                        Cell(text=control_name(control)),
                        *(_accuracy(found.get(control), top) for (_, _, found), top in zip(columns, best, strict=True)),
                    )
                    for control in CONTROLS
                    if any(control in found for _, _, found in columns)
                )
            ),
        ),
        note="Mean over seeds that nothing was chosen with ± half of its 95 % confidence interval (Student’s t). Bold: the "
        "highest mean of a column, which by itself is no verdict.",
    )


def gains_table(study: Study) -> Table | None:
    """What regulation gains over each control on the test split; None without a confirmation."""
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for row in study.confirmed:
        if row.comparison is not None:
            title = f"{row.chosen.name}, {_task(study, row.chosen)}"
            groups.setdefault(title, []).append((Cell(text=row.control), *_gain(row.comparison)))
    if not groups:
        return None
    titles = ("gain, points", "95 % interval", "p (Holm)", "p alone", "effect size d", "smallest visible, points", "seeds n")
    return Table(
        caption="What regulation gains over each control, on the test split",
        columns=(Column(title="against", kind="text"), *(Column(title=title) for title in titles)),
        groups=tuple(Group(title=title, rows=tuple(rows)) for title, rows in groups.items()),
    )


def chosen_table(study: Study) -> Table | None:
    """The configurations that were confirmed, as the search found them."""
    owner = study.confirmation or study
    if not owner.looks:
        return None
    rows = [
        (
            Cell(text=found.name),
            Cell(text=", ".join(format_params(found.params))),
            Cell(text=percent(found.val_accuracy), n=1),
            Cell(text=found.identity),
        )
        for found in owner.looks[-1].chosen
    ]
    return Table(
        caption="What was confirmed",
        columns=(
            Column(title="configuration", kind="text"),
            Column(title="what the search chose", kind="text"),
            Column(title="validation accuracy, %"),
            Column(title="trial", kind="code"),
        ),
        groups=(Group(rows=tuple(rows)),),
        note="Fixed before the test split was opened. The validation accuracy is the best of many, so it flatters.",
    )


def controls_table(study: Study) -> Table | None:
    """Regulation as configured beside its controls on validation; None where no control has finished."""
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for row in study.controls:
        gain = Cell(text="")
        if row.gain is not None:
            gain = Cell(text=f"+{row.gain}" if row.gain.mean >= 0 else str(row.gain).replace("-", "−"), n=row.gain.n)
        groups.setdefault(row.backbone, []).append(
            (Cell(text=control_name(row.control)), Cell(text=str(row.accuracy), n=row.accuracy.n), gain)
        )
    if not groups:
        return None
    order = [*(name for name in study.backbones if name in groups), *(name for name in groups if name not in study.backbones)]
    return Table(
        caption="Regulation as configured, beside its controls, on validation",
        columns=(
            Column(title="trial", kind="text"),
            Column(title="validation accuracy, %"),
            Column(title="regulation gains, points"),
        ),
        groups=tuple(Group(title=name, rows=tuple(groups[name])) for name in order),
        note="Nothing here was selected, and the test split was not touched. ± 95 % confidence over seeds (Student’s t), gains "
        "paired by seed; none for a single seed. No correction for many comparisons: an indication, no verdict.",
    )


def verdicts_table(studies: Sequence[tuple[str, Study]]) -> Table:
    """What may be said of each configuration of several studies."""
    groups = []
    for label, study in studies:
        rows = []
        by_chosen = {row.chosen.identity: row for row in study.confirmed if row.control == "regulated"}
        chosen = {found.identity: found for look in (study.confirmation or study).looks[-1:] for found in look.chosen}
        for identity, verdict in study.verdicts.items():
            row = by_chosen.get(identity)
            found = chosen[identity]
            gains = [_points(_row(study, found, control)) for control in REQUIRED]
            rows.append(
                (
                    Cell(text=f"{found.name}, {_task(study, found)}"),
                    Cell(text=verdict.says, says=verdict.says),
                    _accuracy(None if row is None else row.accuracy, math.inf),
                    *gains,
                )
            )
        if not rows:
            nothing: Says = "nothing can be said"
            empty = (Cell(text=""),) * (1 + len(REQUIRED))
            rows.append((Cell(text="no confirmation"), Cell(text=nothing, says=nothing), *empty))
        groups.append(Group(title=label, rows=tuple(rows)))
    return Table(
        caption="Verdicts by study",
        columns=(
            Column(title="configuration", kind="text"),
            Column(title="regulation", kind="text"),
            Column(title="test accuracy, %"),
            *(Column(title=f"gain over {control}, points") for control in REQUIRED),
        ),
        groups=tuple(groups),
        note="Each study’s comparisons are a family of their own. Studies are set side by side, not tested against each other.",
    )


def _row(study: Study, chosen: Chosen, control: str) -> Row | None:
    return next((row for row in study.confirmed if row.chosen == chosen and row.control == control), None)


def _task(study: Study, chosen: Chosen) -> str:
    """The task that a confirmed configuration was tested on, which may be searched."""
    return str(chosen.params.get("task.name", study.config.trial.task.name))


def _accuracy(found: Estimate | None, top: float) -> Cell:
    return Cell(text="–") if found is None else Cell(text=str(found), n=found.n, is_best=found.mean == top)


def _gain(found: Comparison) -> tuple[Cell, ...]:
    visible = "none" if math.isinf(found.visible) else f"{100 * found.visible:.1f}"
    return (
        Cell(text=signed(found.difference)),
        Cell(text=_interval(found)),
        Cell(text=f"{found.adjusted:.2g}"),
        Cell(text=f"{found.p_value:.2g}"),
        Cell(text="–" if found.effect_size is None else f"{found.effect_size:.1f}".replace("-", "−")),
        Cell(text=visible),
        Cell(text=str(found.n)),
    )


def _points(row: Row | None) -> Cell:
    found = None if row is None else row.comparison
    if found is None:
        return Cell(text="–")
    interval = f" [{_interval(found)}]" if found.low is not None else ""
    return Cell(text=f"{signed(found.difference)}{interval}, p = {found.adjusted:.2g}", n=found.n)


def _interval(found: Comparison) -> str:
    return "–" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"


def _runs_of(values: Iterable[str]) -> list[tuple[str, int]]:
    """Neighbours that are the same, with how many they are."""
    found: list[tuple[str, int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1] = (value, found[-1][1] + 1)
        else:
            found.append((value, 1))
    return found
