"""What a report accounts for: the search, what it cost, and where its numbers come from."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from emoreg.config.search_space import describe
from emoreg.formatting import counted, duration, format_params
from emoreg.report.tables import Cell, Row, Table, listed, moment, numbers, percent, seconds_text, span, texts
from emoreg.results.analysis import device_time, pretraining_epochs, waiting_share
from emoreg.results.records import RunRecord, TrialRecord
from emoreg.results.study import StudyResults
from emoreg.results.written import WrittenStudy


def search_line(study: StudyResults) -> str:
    """How the trials of the search ended."""
    if study.config.confirmed:
        return "Nothing was searched: this is a confirmation."
    statuses = Counter(row.status for row in study.searched)
    counts = ", ".join(f"{statuses[status]} {status}" for status in ("finished", "pruned", "failed"))
    sampler, scheduler = study.config.sampler.name, study.config.scheduler.name
    stopped = "none stopped early" if scheduler == "none" else f"stopped early by {scheduler}"
    return f"{len(study.searched)} trials, proposed by {sampler}, {stopped}: {counts}."


def best_table(study: StudyResults) -> Table | None:
    """The best of the search: by backbone, or the Pareto front of several objectives."""
    if not study.leading:
        return None
    metrics = listed([item.metric for item in study.objectives])
    what = "Best of the search by backbone, selected on" if len(study.objectives) == 1 else "Pareto front of the search in"
    values = numbers("validation accuracy, %", "device seconds")
    rows: list[Row] = []
    for row in study.leading:
        n = study.num_seeds(row.identity)
        accuracy, seconds = Cell(percent(row.val_accuracy), n=n), Cell(seconds_text(row.device_seconds), n=n)
        rows.append((row.backbone, accuracy, seconds, ", ".join(format_params(row.sampled)), row.identity))
    return Table(
        caption=f"{what} {metrics}",
        columns=(*texts("backbone"), *values, *texts("parameters"), ("trial", "code")),
        groups=[("", rows)],
        note="Selected on validation, so these accuracies flatter; means over n seeds.",
        folds=True,
    )


def space_table(study: StudyResults) -> Table:
    """What was searched."""
    return Table(
        caption="Search space",
        columns=(("path", "code"), *texts("distribution", "only where")),
        groups=[("", describe(study.search_space))],
        folds=True,
    )


def cost_table(study: StudyResults, price_per_hour: float | None) -> Table:
    """Seconds of the device by stage and by what they went into, and what they cost."""
    roles = {"search": "search", "control": "controls", "trial": "single trials", "confirm": "confirmation"}
    parts = {name: [row for row in study.all_trials if row.role == role] for role, name in roles.items()}
    rows = [_cost(name, study, trials, price_per_hour) for name, trials in parts.items() if trials]
    devices = list(dict.fromkeys(row.device for row in study.all_trials))
    titles = ["trials n", "pre-training", "regulation", "together", "of it on pruned", "of it on failed", "saved by sharing"]
    note = "Saved by sharing: pre-training that trials took from the experience store instead of paying for it, whoever did."
    if price_per_hour is not None:
        titles.append("money")
        note += f" Money: {price_per_hour:g} for an hour of a device, by the devices that a trial held."
    return Table(
        caption=f"Seconds of the device ({listed(devices)}), by stage" if devices else "Seconds of the device, by stage",
        columns=(*texts(""), *numbers(*titles)),
        groups=[("", rows), ("", [_cost("all", study, study.all_trials, price_per_hour)])],
        note=note,
    )


def _cost(name: str, study: StudyResults, rows: Sequence[TrialRecord], price_per_hour: float | None) -> Row:
    spent = device_time(rows)
    lost = [device_time(row for row in rows if row.status == status).total for status in ("pruned", "failed")]
    amounts = (spent.paid, spent.regulation, spent.total, *lost, spent.reused)
    hours = math.fsum(device_time([row]).total / 3600 * _devices(study, row.backbone) for row in rows)
    money = () if price_per_hour is None else (f"{hours * price_per_hour:,.2f}",)
    return (name, str(len(rows)), *map(seconds_text, amounts), *money)


def sharing_line(study: StudyResults) -> str | None:
    """What was computed of the pre-training that trials asked for."""
    found = pretraining_epochs(study.all_trials, [row for home in study.with_confirmation for row in home.epochs])
    if not found.asked:
        return None
    return (
        f"Pre-training: trials asked for {counted(found.asked, 'epoch')} together, and {found.computed:,} were computed; "
        f"{found.least:,} is the least that gives each its length, from an empty store."
    )


def waiting_line(study: StudyResults, price_per_hour: float | None) -> str:
    """What waiting for another trial's pre-training took."""
    runs = [run for _, run in _runs(study)]
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


def _devices(study: StudyResults, backbone: str = "") -> float:
    """Devices that a trial of the backbone held, or one of any: its share of GPUs, or 1 where the study names none."""
    return float(study.config.trial_resources(backbone).gpus or 1.0)


def provenance(study: StudyResults) -> list[tuple[str, str]]:
    """Where the numbers come from: name and value."""
    written = [one.written for one in study.with_confirmation]
    trials, runs = study.all_trials, [run for _, run in _runs(study)]
    versions = [json.loads(run.versions) for run in runs] + [one.versions for one in written]
    packages = dict.fromkeys(name for found in versions for name in found)
    devices = Counter(row.device for row in trials)
    again = [f"{row.identity} (begun {row.attempts} times)" for row in trials if row.attempts > 1]
    trainer = {stage: _each(str(one.trainer.get(stage)) for one in written) for stage in study.written.trainer}
    openings = [item.looked_at for item in study.confirming.openings]
    opened = [f"{moment(item.opened)} UTC, seeds {span(item.seeds)}" for item in openings]
    config = study.config
    seeds = {"sampler": str(config.sampler.seed), "search": str(config.trial.seed), "controls": span(config.control_seeds)}
    if openings:
        seeds["confirmation"] = span(openings[-1].seeds)
    found = {
        "Commit of emoreg": _each([*(run.git_commit for run in runs), *(one.git_commit for one in written)])
        or "not run from a checkout",
        "Versions": ", ".join(f"{name} {_each(found.get(name) for found in versions)}" for name in packages),
        "Platform": _each(one.platform for one in written),
        "Devices": ", ".join(f"{name} ({counted(count, 'trial')})" for name, count in devices.most_common())
        or _each(one.device for one in written),
        **_fingerprints(written),
        "Seeds": ", ".join(f"{name} {text}" for name, text in seeds.items()),
        "Code of the trainers": ", ".join(f"{stage} version {version}" for stage, version in trainer.items()),
        "Begun again within a run": f"{len(again)} of {len(trials)} trials" + (f": {listed(again)}" if again else ""),
        "Openings of the test set": f"{len(openings)}: {listed(opened)}" if openings else "",
    }
    return [(name, value) for name, value in found.items() if value]


def images_table(study: StudyResults) -> Table | None:
    """How each image set is cut, in how many groups, and what is on both sides of a cut."""
    rows: list[Row] = [
        (
            f"{item.role}: {item.name}",
            *(f"{count:,}" for count in (item.num_train, item.num_validation, item.num_test)),
            "" if item.num_groups is None else f"{item.num_groups:,}",
            *(_copies(copies) for copies in (item.validation_copies, item.test_copies, item.task_copies)),
        )
        for item in study.written.images
    ]
    if not rows:
        return None
    shared = (f"{what} in training" for what in ("validation", "test", "task's test"))
    counts = ("trained on", "validation", "test", "groups", *shared)
    return Table(
        caption="Images",
        columns=(*texts(""), *numbers(*counts)),
        groups=[("", rows)],
        note="In training: images that are there exactly, as they are or mirrored, + those that are all but the same. Groups "
        "are those of the training split; none is on both sides of a cut that emoreg made.",
        folds=True,
    )


def _copies(copies: tuple[int, int | None] | None) -> str:
    """Exact + near, as the table's note says."""
    if copies is None:
        return ""
    exact, near = copies
    return f"{exact:,} + {'not looked for' if near is None else f'{near:,}'}"


def _fingerprints(written: Sequence[WrittenStudy]) -> dict[str, str]:
    """Of each image set, and of what the study's file registers."""
    found: dict[str, list[str]] = {}
    for study in written:
        for name, _, target, size, *others, fingerprint in study.fingerprints:
            what = ", ".join(str(part) for part in (name, target, *others) if part)
            found.setdefault(f"Fingerprint of {what} at {size} pixels", []).append(str(fingerprint))
        for name, fingerprint in study.code.items():
            found.setdefault(f"Fingerprint of {name}", []).append(fingerprint)
    return {name: _each(values) for name, values in found.items()}


def _each(values: Iterable[str | None]) -> str:
    """What is the same throughout once, else all there was: search, confirmation and runs may differ."""
    return " / ".join(dict.fromkeys(value for value in values if value))


def runs_table(study: StudyResults) -> Table | None:
    """Every time that the study or its confirmation was run."""
    rows: list[Row] = []
    for name, run in _runs(study):
        ended = "running, or killed" if run.ended is None else f"{run.ending}, {moment(run.ended)}"
        origin = (run.command or "run from Python", (run.git_commit or "")[:12], run.host or "")
        rows.append((f"{name} {run.run}", moment(run.started), ended, str(run.num_trials), str(run.slots), *origin))
    if not rows:
        return None
    titles, counts = texts("run", "started, UTC", "ended"), numbers("trials", "slots")
    return Table(
        caption="Runs",
        columns=(*titles, *counts, ("command", "command"), ("commit", "code"), *texts("host")),
        groups=[("", rows)],
        folds=True,
    )


def _runs(study: StudyResults) -> list[tuple[str, RunRecord]]:
    homes = zip(("study", "confirmation"), study.with_confirmation, strict=False)
    return [(name, run) for name, home in homes for run in home.runs]
