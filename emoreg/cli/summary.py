"""What a study says of itself in a terminal: its plan before it runs, its answer when it has."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.config import CONFIRM, StudyConfig, TrialConfig, leaves
from emoreg.formatting import control_name, counted, duration, format_params
from emoreg.results.analysis import ControlRow, best_by_backbone, control_rows, leading, waiting_share
from emoreg.results.confirmation import Chosen, Look, expected_seconds, opened_beside, rows_of, verdicts
from emoreg.results.records import Records, TrialRecord
from emoreg.results.statistics import Comparison, fewest_seeds
from emoreg.storage.working_copy import WorkingCopy, join


def print_summary(config: StudyConfig, records: Records, copy: WorkingCopy, console: Console) -> None:
    """The answer: best configurations by backbone, regulation beside its controls, and where everything lies."""
    trials = list(records.trials.values())
    best = best_by_backbone(trials, config.objectives[0])
    shown = leading(trials, config.objectives, config.backbones())
    if len(config.objectives) == 1:
        title = f"Best of the search by backbone, selected on {config.objectives[0].metric}"
    else:
        title = f"Pareto front of the search in {' and '.join(item.metric for item in config.objectives)}"
    console.print()
    if shown:
        console.print(_best_table(shown, title))
    else:
        console.print("No trial of the search has finished.")
    order = config.backbones()
    rows = sorted(control_rows(trials), key=lambda row: order.index(row.backbone) if row.backbone in order else len(order))
    console.print()
    if rows:
        _print_controls(rows, best if len(config.objectives) == 1 else {}, console)
        console.print()
    share = waiting_share(records.runs.values())
    if share >= 0.01:
        console.print(
            f"{100 * share:.0f} % of the slots' time went into waiting for pre-training that another trial was doing."
        )
    for record in trials:
        if record.status == "failed":
            console.print(f"failed: trial {record.identity}: {record.reason}", style="red", markup=False, soft_wrap=True)
    for line in places(copy):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if shown:
        console.print("next:         emoreg confirm: the answer, on fresh seeds and the test split", highlight=False)


def print_confirmation_plan(
    config: StudyConfig, planned: Sequence[tuple[Chosen, TrialConfig]], searched: Mapping[str, TrialRecord], console: Console
) -> None:
    """What a confirmation fixes, what it will cost, and what it could show."""
    accuracy = "validation\naccuracy, %"
    table = _table(f"Chosen of {config.name!r}, on validation", "backbone", accuracy, "parameters", "trial")
    chosen = {found.identity: found for found, _ in planned}
    for found in chosen.values():
        shown = "" if found.val_accuracy is None else f"{100 * found.val_accuracy:.1f}"
        table.add_row(found.backbone, shown, Text("\n".join(format_params(found.params))), found.identity)
    console.print(table)
    seeds = sorted({trial.seed for _, trial in planned})
    controls = list(dict.fromkeys(control_name(trial.control) for _, trial in planned))
    num_trials = len({trial.identity for _, trial in planned})
    seconds = expected_seconds(planned, searched)
    console.print(
        f"{num_trials} trials: {', '.join(controls)}, on seeds {seeds[0]} to {seeds[-1]}. About {duration(seconds)} of the "
        "device, by what the search's trials took; each opens the test split once.",
        soft_wrap=True,
    )
    opened = opened_beside((), searched.values())
    if opened:
        console.print(
            f"The test split has been opened by {counted(len(opened), 'trial')} of the study already (`emoreg trial --evaluate "
            "test`): what was chosen since may have been chosen knowing it, and the report will say so.",
            style="yellow",
            soft_wrap=True,
        )
    num_comparisons = len(chosen) * (len(controls) - 1)
    if len(seeds) < fewest_seeds(num_comparisons):
        console.print(
            f"With {counted(len(seeds), 'seed')} no difference can be shown, however large, for {num_comparisons} "
            f"comparisons are made: give --seeds {fewest_seeds(num_comparisons)} or more.",
            style="yellow",
            soft_wrap=True,
        )


def print_confirmation(looks: Sequence[Look], records: Records, copy: WorkingCopy, console: Console) -> None:
    """The answer of a confirmation: each configuration beside its controls on the test split, and what may be said."""
    rows = rows_of(looks[-1], records.trials)
    accuracy, gain = "test\naccuracy, %", "regulation\ngains, points"
    columns = ("backbone", "trial", accuracy, gain, "95 % interval", "p", "seeds")
    table = _table("Regulation beside its controls, on the test split", *columns, right=columns[2:])
    for index, row in enumerate(rows):
        found = row.comparison
        gained = (
            ["", "", ""] if found is None else [f"{100 * found.difference:+.1f}", _interval(found), f"{found.adjusted:.2g}"]
        )
        table.add_row(row.chosen.name, control_name(row.control), str(row.accuracy), *gained, str(row.accuracy.n))
        if index + 1 == len(rows) or rows[index + 1].chosen != row.chosen:
            table.add_section()
    console.print()
    console.print(table)
    console.print(
        "Gains are paired by seed. p: permutation test, by Holm's method over all comparisons above. 95 % intervals: of the "
        "accuracies Student's t, of the gains the bootstrap.",
        highlight=False,
        soft_wrap=True,
    )
    console.print()
    for verdict in verdicts(looks[-1], rows, records.trials).values():
        console.print(verdict.sentence, style="bold", markup=False, soft_wrap=True)
    if len(looks) > 1:
        console.print(
            f"The test split was looked at {len(looks)} times, first on {looks[0].opened[:10]}: a later look may have been "
            "chosen knowing an earlier one's answer.",
            style="yellow",
            soft_wrap=True,
        )
    for line in places(copy):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _interval(found: Comparison) -> str:
    return "" if found.low is None or found.high is None else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def places(copy: WorkingCopy) -> tuple[str, str, str]:
    """Where a study's records are, and what shows them: a confirmation is reported with its study."""
    place = str(copy.folder) if not copy.is_remote else copy.files.uri
    base, question, query = place.partition("?") if copy.is_remote else (place, "", "")
    reported = base.removesuffix(CONFIRM) + question + query
    return (
        f"records:      {join(place, 'records')}",
        f"report:       emoreg report {shlex.quote(reported)}",
        f"TensorBoard:  emoreg tensorboard {shlex.quote(place)}",
    )


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _best_table(best: list[TrialRecord], title: str) -> Table:
    accuracy, seconds = "validation\naccuracy, %", "device\nseconds"
    table = _table(title, "backbone", accuracy, seconds, "parameters", "trial", right=(accuracy, seconds))
    for record in best:
        table.add_row(
            record.backbone,
            "" if record.val_accuracy is None else f"{100 * record.val_accuracy:.1f}",
            f"{record.device_seconds:.1f}",
            Text("\n".join(format_params(record.sampled))),
            record.identity,
        )
    return table


def _print_controls(rows: list[ControlRow], best: Mapping[str, TrialRecord], console: Console) -> None:
    accuracy, gain = "validation\naccuracy, %", "regulation\ngains, points"
    title = "Regulation as configured, beside its controls"
    table = _table(title, "backbone", "trial", accuracy, gain, "seeds", right=(accuracy, gain, "seeds"))
    for index, row in enumerate(rows):
        gained = "" if row.gain is None else (f"+{row.gain}" if row.gain.mean >= 0 else str(row.gain))
        last = index + 1 == len(rows) or rows[index + 1].backbone != row.backbone
        found = best.get(row.backbone)
        table.add_row(row.backbone, control_name(row.control), str(row.accuracy), gained, str(row.accuracy.n))
        if last and found is not None and found.val_accuracy is not None:
            table.add_row(row.backbone, "best of the search", f"{100 * found.val_accuracy:.1f}", "", "1")
        if last:
            table.add_section()
    console.print(table)
    if best:
        console.print("best of the search: selected, so its accuracy flatters it; the others were not.")
    if max(row.accuracy.n for row in rows) < 2:
        console.print("One seed tells nothing about chance: add some with --control-seeds 0 1 2.", highlight=False)
    else:
        console.print("±: 95 % confidence over seeds (Student's t; gains paired by seed).", highlight=False)


def print_plan(study: str, config: StudyConfig, console: Console) -> None:
    """The plan: the resolved configuration, the search space, how many trials, and what they would cost at most.

    Raises:
        UserError: for image sets that cannot be used as the study asks.
    """
    from emoreg.config.search_space import describe, size
    from emoreg.training.devices import device_name, pick_device
    from emoreg.training.optim import length_dependence
    from emoreg.tuning.estimate import estimate_cost
    from emoreg.tuning.preflight import image_storage, prepare_image_sets

    fingerprints = prepare_image_sets(config)
    device = pick_device("cpu" if config.resources.gpus_per_trial == 0 else "auto")
    cost = estimate_cost(config, device, image_storage(config.storage))
    settings = _table(f"Study {config.name!r} ({study})", "setting", "value")
    settings.columns[0].no_wrap = True
    for path, value in leaves(config.without_password()):
        is_shown = path.partition(".")[0] not in ("search_space", "confirmed")
        if is_shown and value != {}:  # resources_by_backbone, where it is empty
            searched = path.removeprefix("trial.") in config.search_space
            settings.add_row(path, Text(_as_text(value) + (" (searched)" if searched else "")))
    console.print(settings)
    console.print()
    space = _table("Search space", "path", "distribution", "only where")
    space.columns[0].no_wrap = True
    for row in describe(config.search_space):
        space.add_row(*map(Text, row))
    console.print(space)
    console.print()
    combinations = size(config.search_space, config.trial)
    plan = Table.grid(padding=(0, 2))
    for name, text in {
        "image sets": ", ".join(f"{role} {fingerprint[:12]}" for role, fingerprint in fingerprints.items()),
        "combinations": "infinitely many" if combinations is None else str(combinations),
        "pre-training": length_dependence(config.trial.pretraining) or "shared: a longer one continues a shorter one",
        "trials": f"{cost.num_search} of the search + {cost.num_controls} controls, {cost.concurrency} at a time",
        "cost": f"{duration(cost.device_seconds)} of {device_name(device)}, {duration(cost.wall_seconds)} of waiting, at most: "
        "no pre-training shared, nothing stopped early",
        "measured": ", ".join(f"{name} {1 / seconds:,.0f} images/s" for name, seconds in cost.seconds_per_image.items())
        + " for a training step of one encoder",
    }.items():
        plan.add_row(name, Text(text))
    console.print(plan)


def _as_text(value: Any) -> str:
    """A setting's value as the command line would take it."""
    return " ".join(map(_as_text, value)) if isinstance(value, tuple) else str(value)
