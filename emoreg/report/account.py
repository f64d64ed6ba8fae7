"""What a report accounts for: the search, what it cost, and where its numbers come from."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from emoreg.config.search_space import describe
from emoreg.formatting import counted, duration, format_params
from emoreg.report.cells import MOST_LISTED, Cell, Column, Group, Table, listed, percent, seconds_text, span
from emoreg.results.analysis import experience_ledger, waiting_share
from emoreg.results.records import RunRecord, TrialRecord
from emoreg.results.study import Study


def search_line(study: Study) -> str:
    """How the trials of the search ended."""
    if study.config.confirmed:
        return "Nothing was searched: this is a confirmation."
    statuses = Counter(row.status for row in study.searched)
    counts = ", ".join(f"{statuses[status]} {status}" for status in ("finished", "pruned", "failed"))
    sampler, scheduler = study.config.sampler.name, study.config.scheduler.name
    stopped = "none stopped early" if scheduler == "none" else f"stopped early by {scheduler}"
    return f"{len(study.searched)} trials, proposed by {sampler}, {stopped}: {counts}."


def best_table(study: Study) -> Table | None:
    """The best of the search: by backbone, or the Pareto front of several objectives."""
    if not study.leading:
        return None
    metrics = listed([item.metric for item in study.objectives])
    what = "Best of the search by backbone, selected on" if len(study.objectives) == 1 else "Pareto front of the search in"
    rows = [
        (
            Cell(text=row.backbone),
            Cell(text=percent(row.val_accuracy), n=1),
            Cell(text=seconds_text(row.device_seconds), n=1),
            Cell(text=", ".join(format_params(row.sampled))),
            Cell(text=row.identity),
        )
        for row in study.leading
    ]
    return Table(
        caption=f"{what} {metrics}",
        columns=(
            Column(title="backbone", kind="text"),
            Column(title="validation accuracy, %"),
            Column(title="device seconds"),
            Column(title="parameters", kind="text"),
            Column(title="trial", kind="code"),
        ),
        groups=(Group(rows=tuple(rows)),),
        note="Selected on validation, so these accuracies flatter; one seed each.",
        is_long=len(rows) > MOST_LISTED,
    )


def space_table(study: Study) -> Table:
    """What was searched."""
    columns = (
        Column(title="path", kind="code"),
        Column(title="distribution", kind="text"),
        Column(title="only where", kind="text"),
    )
    rows = tuple(tuple(Cell(text=text) for text in row) for row in describe(study.search_space))
    return Table(caption="Search space", columns=columns, groups=(Group(rows=rows),), is_long=len(rows) > MOST_LISTED)


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
            f"Waiting for pre-training that another trial was doing: {seconds_text(seconds)} s inside of {len(study.trials)} "
            "trials; what empty slots waited is not known."
        )
    waited = math.fsum(run.waiting_slot_seconds for run in runs)
    hours = waited / 3600 * _devices(study)
    money = "" if price_per_hour is None else f", {hours * price_per_hour:,.2f} at that price, which the table leaves out"
    return (
        f"Waiting for pre-training that another trial was doing: {seconds_text(waited)} s of slots "
        f"({duration(waited)}{money}), {100 * waiting_share(runs):.0f} % of their time, over {counted(len(runs), 'run')}."
    )


def provenance(study: Study) -> list[tuple[str, str]]:
    """Where the numbers come from: name and value."""
    confirmation = study.confirmation
    studies = [study, *([confirmation] if confirmation is not None else [])]
    written = [one.written for one in studies]
    trials = [row for one in studies for row in one.trials]
    devices = Counter(row.device for row in trials)
    again = [row for row in trials if row.attempts > 1]
    runs = _runs(study)
    versions = [json.loads(run.versions) for run in runs if run.versions is not None] + [one["versions"] for one in written]
    packages = dict.fromkeys(name for found in versions for name in found)
    commits = [commit for commit in (*(run.git_commit for run in runs), *(one["git_commit"] for one in written)) if commit]
    found = [
        ("Commit of emoreg", _each(commits) or "not run from a checkout"),
        ("Versions", ", ".join(f"{name} {_each(found.get(name) for found in versions)}" for name in packages)),
        ("Platform", _each(one["platform"] for one in written)),
        (
            "Devices",
            ", ".join(f"{name} ({counted(count, 'trial')})" for name, count in devices.most_common())
            or _each(one["device"] for one in written),
        ),
    ]
    for role in dict.fromkeys(role for one in written for role in one["fingerprints"]):
        found.append((f"Fingerprint of {role}", _each(one["fingerprints"].get(role) for one in written)))
    found.append(("Seeds", _seeds(study)))
    stages = {stage: _each(str(one.trainer[stage]) for one in studies) for stage in study.trainer}
    found.append(("Code of the trainers", ", ".join(f"{stage} version {version}" for stage, version in stages.items())))
    found.append(
        (
            "Restarted",
            f"{len(again)} of {len(trials)} trials"
            + (f": {listed([f'{row.identity} (begun {row.attempts} times)' for row in again])}" if again else ""),
        )
    )
    looks = (confirmation or study).looks
    if looks:
        said = listed([f"{look.opened[:16].replace('T', ' ')} UTC, seeds {span(look.seeds)}" for look in looks])
        found.append(("Looks at the test split", f"{len(looks)}: {said}"))
    return found


def _each(values: Iterable[str | None]) -> str:
    """What is the same throughout once, else all there was: search, confirmation and runs may differ."""
    return " / ".join(dict.fromkeys(value for value in values if value))


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
        is_long=len(rows) > MOST_LISTED,
    )


def _cost(name: str, study: Study, rows: Sequence[TrialRecord], price_per_hour: float | None) -> tuple[Cell, ...]:
    def spent(status: str | None = None) -> float:
        return math.fsum(
            row.pretraining_seconds + row.regulation_seconds for row in rows if status is None or row.status == status
        )

    ledger = experience_ledger(rows)
    regulation = math.fsum(row.regulation_seconds for row in rows)
    amounts = (ledger.paid, regulation, spent(), spent("pruned"), spent("failed"), ledger.reused)
    cells = [Cell(text=name), Cell(text=str(len(rows))), *(Cell(text=seconds_text(amount)) for amount in amounts)]
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
        f"controls {span(study.config.control_seeds)}",
    ]
    looks = (study.confirmation or study).looks
    return ", ".join(found + ([f"confirmation {span(looks[-1].seeds)}"] if looks else []))


def _runs_by_study(study: Study) -> list[tuple[str, tuple[RunRecord, ...]]]:
    found = [("study", study.runs)]
    if study.confirmation is not None:
        found.append(("confirmation", study.confirmation.runs))
    return found


def _runs(study: Study) -> list[RunRecord]:
    return [run for _, runs in _runs_by_study(study) for run in runs]
