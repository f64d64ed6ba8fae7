"""The commands behind a report's numbers, as far as the records tell what was typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from emoreg.formatting import control_name
from emoreg.report.cells import MOST_LISTED, Cell, Column, Group, Table, percent
from emoreg.results.records import RunRecord, TrialRecord
from emoreg.results.study import Study
from emoreg.storage.files import without_credentials


def commands(study: Study) -> list[tuple[str, str]]:
    """What gives the numbers of the report again: words and the command."""
    what, verb = ("Confirm", "confirm") if study.config.confirmed else ("Run", "run")
    found = [(f"{what} the study, or what is missing of it", _typed(study.runs) or f"emoreg {verb} {_reference(study)}")]
    if study.confirmation is not None:
        typed = _typed(study.confirmation.runs)
        found.append(("Confirm its best on the test split", typed or f"emoreg confirm {_reference(study)}"))
    place = shlex.quote(without_credentials(study.place))
    found.append(("Make this report again: every mean, interval and p-value from the records", f"emoreg report {place}"))
    found.append(("Run one trial again and compare it with its record", replay_command(study, "IDENTITY")))
    return found


def replay_tables(study: Study) -> list[Table]:
    """The trials behind the numbers, with what runs each again."""
    best = [(f"{row.backbone}, trial {row.number}", row) for row in study.leading]
    owner = study.confirmation or study
    by_identity = {row.identity: row for row in owner.trials}
    looked = [
        (f"{found.name}, {control_name(trial.control)}, seed {trial.seed}", by_identity[trial.identity])
        for look in owner.looks[-1:]
        for found in look.chosen
        for trial in look.trials
        if trial.chosen == found.identity and trial.identity in by_identity
    ]
    controls = [
        (f"{row.backbone}, {control_name(row.control)}, seed {row.seed}", row) for row in study.trials if row.role == "control"
    ]
    named = (("best of the search", best), ("confirmation", looked), ("controls on validation", controls))
    return [_replays(study, f"Trials: {name} ({len(rows)})", rows) for name, rows in named if rows]


def confirm_command(study: Study) -> str:
    """What confirms the study, or goes on with that, as far as the records tell what was typed."""
    owner = study.confirmation or study
    if owner.looks:
        return _typed(owner.runs) or f"emoreg confirm {_reference(study)}"
    return shlex.join(["emoreg", "confirm", *(_words(study)[2:] or ["STUDY"])])


def replay_command(study: Study, identity: str) -> str:
    """What runs a trial again, and compares."""
    return f"emoreg trial {_reference(study)} --replay {identity}"


def _reference(study: Study) -> str:
    """The study as commands take it: its module or file, and where the last command told its name and storage to be."""
    words = _words(study)
    if len(words) < 3:
        return "STUDY"
    found = [words[2]]
    for index, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option in ("--storage", "--name"):
            found += [word] if equals else words[index : index + 2]
    return shlex.join(found)


def _words(study: Study) -> list[str]:
    """What was typed last to run the study, as words; none where that is not known."""
    try:
        return shlex.split(_typed(study.runs) or "")
    except ValueError:  # an older emoreg could hide a password with the quotation mark after it
        return []


def _typed(runs: Iterable[RunRecord]) -> str | None:
    return next((run.command for run in reversed([*runs]) if run.command is not None), None)


def _replays(study: Study, caption: str, rows: Sequence[tuple[str, TrialRecord]]) -> Table:
    return Table(
        caption=caption,
        columns=(
            Column(title="trial", kind="text"),
            Column(title="validation accuracy, %"),
            Column(title="test accuracy, %"),
            Column(title="ended", kind="text"),
            Column(title="command", kind="command"),
        ),
        groups=(
            Group(
                rows=tuple(
                    (
                        Cell(text=name),
                        Cell(text=percent(row.val_accuracy)),
                        Cell(text=percent(row.test_accuracy)),
                        Cell(text=row.status),
                        Cell(text=replay_command(study, row.identity)),
                    )
                    for name, row in rows
                )
            ),
        ),
        note="Each is one training (n = 1).",
        is_long=len(rows) > MOST_LISTED,
    )
