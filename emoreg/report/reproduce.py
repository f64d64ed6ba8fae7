"""The commands behind a report's numbers, as far as the records tell what was typed."""

from __future__ import annotations

import shlex

from emoreg.config import CONFIRM, without_secrets
from emoreg.formatting import control_name
from emoreg.report.tables import Row, Table, numbers, percent, texts
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults


def commands(study: StudyResults) -> list[tuple[str, str]]:
    """What gives the numbers of the report again: words and the command."""
    what, verb = ("Confirm", "confirm") if study.config.confirmed else ("Run", "run")
    found = [(f"{what} the study, or what is missing of it", _typed(study) or _command(study, verb))]
    if study.confirmation is not None:
        typed = _typed(study.confirmation) or _command(study, "confirm")
        found.append(("Confirm its best on the test set", typed))
    place = shlex.quote(without_secrets(study.place))
    found.append(("Make this report again: every mean, interval and p-value from the records", f"emoreg report {place}"))
    found.append(("Run one trial again and compare it with its record", replay_command(study, "IDENTITY")))
    return found


def confirm_command(study: StudyResults) -> str:
    """What confirms the study, or goes on with that: with the options that the study was run with."""
    if study.opening is not None:
        return _typed(study.confirming) or _command(study, "confirm")
    return shlex.join(["emoreg", "confirm", *(_words(study)[2:] or ["STUDY"])])


def replay_command(study: StudyResults, identity: str) -> str:
    """What runs a trial again, and compares."""
    return _command(study, "trial", "--replay", identity)


def replay_tables(study: StudyResults) -> list[Table]:
    """The trials behind the numbers, with what runs each again."""
    best = [(f"{row.backbone}, trial {row.number}", row) for row in study.leading]
    records, openings = study.confirming.by_identity, study.confirming.openings
    confirmed = [
        (f"{found.name}, {trial.rival.label}{own}, seed {trial.seed}", records[trial.identity])
        for opening in openings[-1:]
        for found in opening.chosen
        for trials, own in ((opening.trials, ""), (opening.tuned_trials, " of its own search"))
        for trial in trials
        if trial.chosen == found.identity and trial.identity in records
    ]
    controls = [
        (f"{row.backbone}, {control_name(row.control)}, seed {row.seed}", row) for row in study.trials if row.role == "control"
    ]
    named = {"best of the search": best, "confirmation": confirmed, "controls on validation": controls}
    accuracies = numbers("validation accuracy, %", "test accuracy, %")
    return [
        Table(
            caption=f"Trials: {name} ({len(trials)})",
            columns=(*texts("trial"), *accuracies, *texts("ended"), ("command", "command")),
            groups=[("", [_replayed(study, what, row) for what, row in trials])],
            note="Each is one training (n = 1).",
            folds=True,
        )
        for name, trials in named.items()
        if trials
    ]


def _replayed(study: StudyResults, what: str, row: TrialRecord) -> Row:
    is_shown = study.opening is None or study.opening.is_complete(study.confirming.by_identity)
    accuracies = percent(row.val_accuracy), percent(row.test_accuracy) if is_shown else "hidden"
    return (what, *accuracies, row.status, replay_command(study, row.identity))


def _command(study: StudyResults, verb: str, *options: str) -> str:
    """A command on the study: its module or file as it was typed last, its storage and its name."""
    last = study.runs[-1:]
    where = [word for run in last for word in ("--storage", run.storage, "--name", run.study.removesuffix(CONFIRM))]
    return shlex.join(["emoreg", verb, *(_words(study)[2:3] or ["STUDY"]), *where, *options])


def _typed(study: StudyResults) -> str | None:
    """The last command that ran the study, where it was run by one."""
    return next((run.command for run in reversed(study.runs) if run.command is not None), None)


def _words(study: StudyResults) -> list[str]:
    return shlex.split(_typed(study) or "")
