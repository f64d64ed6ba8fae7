"""What a report says in words and tables, made from a study's records. Numbers are text here, each with its n."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from emoreg.analysis import Estimate, experience_ledger, pareto_front, waiting_share
from emoreg.config import CONTROLS
from emoreg.confirmation import Chosen, Row
from emoreg.files import without_credentials
from emoreg.records import RunRecord, TrialRecord
from emoreg.results import Study
from emoreg.search_space import describe
from emoreg.statistics import REQUIRED, Comparison, Says, fewest_seeds
from emoreg.words import control_name, duration, format_params

_METHODS = ("none", *CONTROLS)
_MOST_LISTED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        n: how many values a number is of; None where it says so itself, or a column does.
        is_best: of its column.
        says: the verdict that the text is.
    """

    text: str
    n: int | None = None
    is_best: bool = False
    says: Says | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """The head of a column, and how its cells are set."""

    title: str
    kind: Literal["text", "number", "code", "command"] = "number"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows under a common title, which may be empty. The first cell of a row is its head."""

    title: str = ""
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table.

    Attributes:
        above: titles over the columns but the first, each with the number of columns below it; empty for none.
        note: what a reader must know to read it.
        is_long: whether it is folded away until it is asked for.
    """

    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    above: tuple[tuple[str, int], ...] = ()
    note: str = ""
    is_long: bool = False


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
    if not owner.looks:
        return []
    look = owner.looks[-1]
    found = []
    finished = {row.identity for row in owner.trials if row.status == "finished"}
    open_trials = [trial for trial in look.trials if trial.identity not in finished]
    if open_trials:
        found.append(
            f"{len(open_trials)} of {len(look.trials)} trials of the confirmation have not finished: "
            f"`{confirm_command(study)}` runs what is missing. Before all have ended, no verdict is given."
        )
    num_comparisons = sum(row.comparison is not None for row in study.confirmed)
    most = max((row.comparison.n for row in study.confirmed if row.comparison is not None), default=0)
    if most == 1:
        found.append(
            "The confirmation has a single seed, which tells nothing about chance: there is no interval and no effect could "
            f"have been seen. {fewest_seeds(num_comparisons)} seeds or more can show one."
        )
    elif num_comparisons and most < fewest_seeds(num_comparisons):
        found.append(
            f"With {most} seeds no difference can be shown, however large, for {num_comparisons} comparisons are made: "
            f"{fewest_seeds(num_comparisons)} seeds or more can show one."
        )
    absent = [control for control in REQUIRED if control not in {row.control for row in study.confirmed}]
    if absent and study.confirmed:
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
                    for control in _METHODS
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
            Cell(text=_percent(found.accuracy), n=1),
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


def best_table(study: Study) -> Table | None:
    """The best of the search: by backbone, or the Pareto front of several objectives."""
    if len(study.objectives) == 1:
        objective = study.objectives[0]
        shown = [study.best[backbone] for backbone in study.backbones if backbone in study.best]
        caption = f"Best of the search by backbone, selected on {objective.metric}"
    else:
        shown = pareto_front(study.trials, study.objectives)
        caption = f"Pareto front of the search in {listed([item.metric for item in study.objectives])}"
    if not shown:
        return None
    rows = [
        (
            Cell(text=row.backbone),
            Cell(text=_percent(row.accuracy), n=1),
            Cell(text=_seconds(row.device_seconds), n=1),
            Cell(text=", ".join(format_params(row.sampled))),
            Cell(text=row.identity),
        )
        for row in shown
    ]
    return Table(
        caption=caption,
        columns=(
            Column(title="backbone", kind="text"),
            Column(title="validation accuracy, %"),
            Column(title="device seconds"),
            Column(title="parameters", kind="text"),
            Column(title="trial", kind="code"),
        ),
        groups=(Group(rows=tuple(rows)),),
        note="Selected on validation, so these accuracies flatter; one seed each.",
    )


def space_table(study: Study) -> Table:
    """What was searched."""
    columns = (
        Column(title="path", kind="code"),
        Column(title="distribution", kind="text"),
        Column(title="only where", kind="text"),
    )
    rows = tuple(tuple(Cell(text=text) for text in row) for row in describe(study.search_space))
    return Table(caption="Search space", columns=columns, groups=(Group(rows=rows),), is_long=len(rows) > _MOST_LISTED)


def search_line(study: Study) -> str:
    """How the trials of the search ended."""
    statuses = Counter(row.status for row in study.searched)
    counts = ", ".join(f"{statuses[status]} {status}" for status in ("finished", "pruned", "failed"))
    sampler, scheduler = study.config.sampler.name, study.config.scheduler.name
    stopped = "none stopped early" if scheduler == "none" else f"stopped early by {scheduler}"
    return f"{len(study.searched)} trials, proposed by {sampler}, {stopped}: {counts}."


def cost_table(study: Study, price_per_hour: float | None) -> Table:
    """Seconds of the device by stage and by what they went into, and what they cost."""
    own = study.trials
    confirmation = study.confirmation.trials if study.confirmation is not None else ()
    parts = {
        "search": [row for row in own if row.role == "search"],
        "controls": [row for row in own if row.role == "control"],
        "single trials": [row for row in own if row.role == "trial"],
        "confirmation": [*(row for row in own if row.role == "confirm"), *confirmation],
    }
    rows = [_cost(name, study, trials, price_per_hour) for name, trials in parts.items() if trials]
    everything = [row for trials in parts.values() for row in trials]
    devices = list(dict.fromkeys(row.device for row in everything))
    priced = price_per_hour is not None
    titles = ["pre-training", "regulation", "together", "of it on pruned", "of it on failed", "saved by sharing"]
    return Table(
        caption=f"Seconds of the device ({listed(devices)}), by stage" if devices else "Seconds of the device, by stage",
        columns=(
            Column(title="", kind="text"),
            Column(title="trials n"),
            *(Column(title=title) for title in titles),
            *((Column(title="money"),) if priced else ()),
        ),
        groups=(
            Group(rows=tuple(rows)),
            Group(rows=(_cost("all", study, everything, price_per_hour),)),
        ),
        note="Saved by sharing: pre-training that trials took from the experience store instead of paying for it, whoever did."
        + (f" Money: {price_per_hour:g} for an hour of a device, by the devices that a trial held." if priced else ""),
    )


def waiting_line(study: Study, price_per_hour: float | None) -> str:
    """What waiting for another trial's pre-training took."""
    runs = _runs(study)
    if not runs:
        seconds = math.fsum(row.waiting_seconds for row in study.trials)
        return (
            f"Waiting for pre-training that another trial was doing: {_seconds(seconds)} s inside of {len(study.trials)} "
            "trials; what empty slots waited is not known."
        )
    waited = math.fsum(run.waiting_slot_seconds for run in runs)
    hours = waited / 3600 * _devices(study)
    money = "" if price_per_hour is None else f", {hours * price_per_hour:,.2f} at that price, which the table leaves out"
    return (
        f"Waiting for pre-training that another trial was doing: {_seconds(waited)} s of slots ({duration(waited)}{money}), "
        f"{100 * waiting_share(runs):.0f} % of their time, over {_counted(len(runs), 'run')}."
    )


def provenance(study: Study) -> list[tuple[str, str]]:
    """Where the numbers come from: name and value."""
    written, confirmation = study.written, study.confirmation
    trials = [*study.trials, *(confirmation.trials if confirmation is not None else ())]
    devices = Counter(row.device for row in trials)
    again = [row for row in trials if row.attempts > 1]
    found = [
        ("Commit of emoreg", written["git_commit"] or "not run from a checkout"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in written["versions"].items())),
        ("Platform", written["platform"]),
        (
            "Devices",
            ", ".join(f"{name} ({_counted(count, 'trial')})" for name, count in devices.most_common()) or written["device"],
        ),
    ]
    for role, fingerprint in written["fingerprints"].items():
        found.append((f"Fingerprint of {role}", fingerprint))
    found.append(("Seeds", _seeds(study)))
    found.append(("Code of the trainers", ", ".join(f"{stage} version {version}" for stage, version in study.trainer.items())))
    found.append(
        (
            "Restarted",
            f"{len(again)} of {len(trials)} trials"
            + (f": {listed([f'{row.identity} (begun {row.attempts} times)' for row in again])}" if again else ""),
        )
    )
    looks = (confirmation or study).looks
    if looks:
        said = listed([f"{look.opened[:16].replace('T', ' ')} UTC, seeds {_span(look.seeds)}" for look in looks])
        found.append(("Looks at the test split", f"{len(looks)}: {said}"))
    return found


def runs_table(study: Study) -> Table | None:
    """Every time that the study or its confirmation was run."""
    rows = []
    for name, runs in _runs_by_study(study):
        for run in runs:
            ended = "running, or killed" if run.ended is None else f"{run.ending}, {run.ended[:16].replace('T', ' ')}"
            rows.append(
                (
                    Cell(text=f"{name} {run.run}"),
                    Cell(text=run.started[:16].replace("T", " ")),
                    Cell(text=ended),
                    Cell(text=str(run.num_trials)),
                    Cell(text=str(run.slots)),
                    Cell(text=run.command or "not recorded"),
                    Cell(text=(run.git_commit or "")[:12]),
                    Cell(text=run.host or ""),
                )
            )
    if not rows:
        return None
    return Table(
        caption="Runs",
        columns=(
            Column(title="run", kind="text"),
            Column(title="started, UTC", kind="text"),
            Column(title="ended", kind="text"),
            Column(title="trials"),
            Column(title="slots"),
            Column(title="command", kind="command"),
            Column(title="commit", kind="code"),
            Column(title="host", kind="text"),
        ),
        groups=(Group(rows=tuple(rows)),),
        is_long=len(rows) > _MOST_LISTED,
    )


def commands(study: Study) -> list[tuple[str, str]]:
    """What gives the numbers of the report again: words and the command."""
    found = [("Run the study, or what is missing of it", _typed(study.runs) or f"emoreg run {_reference(study)}")]
    if study.confirmation is not None:
        typed = _typed(study.confirmation.runs)
        found.append(("Confirm its best on the test split", typed or f"emoreg confirm {_reference(study)}"))
    place = shlex.quote(without_credentials(study.place))
    found.append(("Make this report again: every mean, interval and p-value from the records", f"emoreg report {place}"))
    found.append(("Run one trial again and compare it with its record", replay_command(study, "IDENTITY")))
    return found


def replay_tables(study: Study) -> list[Table]:
    """The trials behind the numbers, with what runs each again."""
    names = {row.identity: name for name, row in _best_named(study)}
    best = [(name, row) for row in study.trials if (name := names.get(row.identity)) is not None]
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


def verdicts_table(studies: Sequence[tuple[str, Study]]) -> Table:
    """What may be said of each configuration of several studies."""
    groups = []
    for label, study in studies:
        rows = []
        by_chosen = {row.chosen.identity: row for row in study.confirmed if row.control == "none"}
        for identity, verdict in study.verdicts.items():
            row = by_chosen.get(identity)
            gains = [_points(None if row is None else _row(study, row.chosen, control)) for control in REQUIRED]
            rows.append(
                (
                    Cell(text="–" if row is None else f"{row.chosen.name}, {_task(study, row.chosen)}"),
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


def listed(names: Sequence[str]) -> str:
    """The names with commas, no more than a reader takes in."""
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def confirm_command(study: Study) -> str:
    """What confirms the study, or goes on with that, as far as the records tell what was typed."""
    owner = study.confirmation or study
    if owner.looks:
        return _typed(owner.runs) or f"emoreg confirm {_reference(study)}"
    words = shlex.split(_typed(study.runs) or "emoreg run STUDY")
    return shlex.join(["emoreg", "confirm", *words[2:]])


def replay_command(study: Study, identity: str) -> str:
    """What runs a trial again, and compares."""
    return f"emoreg trial {_reference(study)} --replay {identity}"


def _reference(study: Study) -> str:
    """The study as commands take it: its module or file, and where the last command told its name and storage to be."""
    command = _typed(study.runs)
    words = shlex.split(command) if command is not None else []
    if len(words) < 3:
        return "STUDY"
    found = [words[2]]
    for index, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option in ("--storage", "--name"):
            found += [word] if equals else words[index : index + 2]
    return shlex.join(found)


def _typed(runs: Iterable[RunRecord]) -> str | None:
    return next((run.command for run in reversed([*runs]) if run.command is not None), None)


def _best_named(study: Study) -> list[tuple[str, TrialRecord]]:
    if len(study.objectives) == 1:
        return [(f"{row.backbone}, trial {row.number}", row) for row in study.best.values()]
    return [(f"{row.backbone}, trial {row.number}", row) for row in pareto_front(study.trials, study.objectives)]


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
                        Cell(text=_percent(row.accuracy)),
                        Cell(text=_percent(row.test_accuracy)),
                        Cell(text=row.status),
                        Cell(text=replay_command(study, row.identity)),
                    )
                    for name, row in rows
                )
            ),
        ),
        note="Each is one training (n = 1).",
        is_long=len(rows) > _MOST_LISTED,
    )


def _row(study: Study, chosen: Chosen, control: str) -> Row | None:
    return next((row for row in study.confirmed if row.chosen == chosen and row.control == control), None)


def _task(study: Study, chosen: Chosen) -> str:
    """The task that a confirmed configuration was tested on, which may be searched."""
    owner = study.confirmation or study
    planned = {trial.identity for trial in owner.looks[-1].trials if trial.chosen == chosen.identity}
    return next(row.task for row in owner.trials if row.identity in planned)


def _accuracy(found: Estimate | None, top: float) -> Cell:
    return Cell(text="–") if found is None else Cell(text=str(found), n=found.n, is_best=found.mean == top)


def _gain(found: Comparison) -> tuple[Cell, ...]:
    visible = "none" if math.isinf(found.visible) else f"{100 * found.visible:.1f}"
    return (
        Cell(text=_signed(found.difference)),
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
    return Cell(text=f"{_signed(found.difference)}{interval}, p = {found.adjusted:.2g}", n=found.n)


def _interval(found: Comparison) -> str:
    return "–" if found.low is None or found.high is None else f"{_signed(found.low)} to {_signed(found.high)}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}"


def _cost(name: str, study: Study, rows: Sequence[TrialRecord], price_per_hour: float | None) -> tuple[Cell, ...]:
    def spent(status: str | None = None) -> float:
        return math.fsum(
            row.pretraining_seconds + row.regulation_seconds for row in rows if status is None or row.status == status
        )

    ledger = experience_ledger(rows)
    regulation = math.fsum(row.regulation_seconds for row in rows)
    amounts = (ledger.paid, regulation, spent(), spent("pruned"), spent("failed"), ledger.reused)
    cells = [Cell(text=name), Cell(text=str(len(rows))), *(Cell(text=_seconds(amount)) for amount in amounts)]
    if price_per_hour is not None:
        hours = math.fsum(
            (row.pretraining_seconds + row.regulation_seconds) / 3600 * _devices(study, row.backbone) for row in rows
        )
        cells.append(Cell(text=f"{hours * price_per_hour:,.2f}"))
    return tuple(cells)


def _devices(study: Study, backbone: str = "") -> float:
    """Devices that a trial of the backbone held, or one of any: its share of GPUs, or 1 where the study names none."""
    gpus = study.config.trial_resources(backbone).gpus
    return float(gpus or 1.0)


def _seeds(study: Study) -> str:
    found = [
        f"sampler {study.config.sampler.seed}",
        f"search {study.config.trial.seed}",
        f"controls {_span(study.config.control_seeds)}",
    ]
    looks = (study.confirmation or study).looks
    return ", ".join(found + ([f"confirmation {_span(looks[-1].seeds)}"] if looks else []))


def _span(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return " ".join(map(str, seeds)) or "none"


def _runs_by_study(study: Study) -> list[tuple[str, tuple[RunRecord, ...]]]:
    found = [("study", study.runs)]
    if study.confirmation is not None:
        found.append(("confirmation", study.confirmation.runs))
    return found


def _runs(study: Study) -> list[RunRecord]:
    return [run for _, runs in _runs_by_study(study) for run in runs]


def _runs_of(values: Iterable[str]) -> list[tuple[str, int]]:
    """Neighbours that are the same, with how many they are."""
    found: list[tuple[str, int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1] = (value, found[-1][1] + 1)
        else:
            found.append((value, 1))
    return found


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
