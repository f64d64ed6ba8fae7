"""What a study says of itself in a terminal: its plan before it runs, its answer when it has."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emoreg.analysis import best_by_backbone, control_rows, pareto_front
from emoreg.config import StudyConfig, leaves
from emoreg.records import Records, TrialRecord

_CONTROL_NAMES = {"none": "regulation (as configured)"}


def print_summary(config: StudyConfig, records: Records, folder: Path, console: Console) -> None:
    """The answer: best configurations by backbone, regulation beside its controls, and where everything lies."""
    trials = list(records.trials.values())
    objective = config.objectives[0]
    if len(config.objectives) == 1:
        best = list(best_by_backbone(trials, objective).values())
        title = f"Best of the search, by backbone: selected on {objective.metric}, so they flatter themselves"
    else:
        best = pareto_front(trials, config.objectives)
        title = f"Pareto front of the search in {' and '.join(item.metric for item in config.objectives)}"
    console.print(_best_table(best, title))
    rows = control_rows(trials)
    if rows:
        table = Table(title="Regulation beside its controls: one fixed configuration, nothing selected", title_justify="left")
        for column in ("backbone", "trial", "validation accuracy, %", "regulation gains, points", "seeds"):
            table.add_column(column, justify="left" if column in ("backbone", "trial") else "right")
        for row in rows:
            gain = "" if row.gain is None else (f"+{row.gain}" if row.gain.mean >= 0 else str(row.gain))
            name = _CONTROL_NAMES.get(row.control, row.control)
            table.add_row(row.backbone, name, str(row.accuracy), gain, str(row.accuracy.n))
        console.print(table)
        if max(row.accuracy.n for row in rows) < 2:
            console.print("One seed tells nothing about chance: add some with --control-seeds 0 1 2.", highlight=False)
        else:
            console.print("±: 95 % confidence over seeds (Student's t; gains paired by seed).", highlight=False)
    console.print(f"records:      {folder / 'records'}", highlight=False, soft_wrap=True)
    console.print(f"TensorBoard:  tensorboard --logdir {folder / 'events'}", highlight=False, soft_wrap=True)


def _best_table(best: list[TrialRecord], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("backbone", "validation accuracy, %", "device seconds", "parameters", "trial"):
        table.add_column(column, justify="right" if column in ("validation accuracy, %", "device seconds") else "left")
    for record in best:
        params = {path: value for path, value in json.loads(record.params).items() if path != "backbone"}
        table.add_row(
            record.backbone,
            "" if record.accuracy is None else f"{100 * record.accuracy:.1f}",
            f"{record.device_seconds:.1f}",
            "\n".join(f"{path} = {round(value, 4) if isinstance(value, float) else value}" for path, value in params.items()),
            record.identity,
        )
    return table


def print_plan(study: str, config: StudyConfig, console: Console) -> None:
    """The plan: the resolved configuration, the search space, how many trials, and what they would cost at most."""
    from emoreg.devices import device_name, pick_device
    from emoreg.estimate import estimate_cost
    from emoreg.preflight import local_storage, prepare_image_sets
    from emoreg.progress import duration
    from emoreg.search_space import describe, size

    settings = Table("setting", "value", title=f"Study {config.name!r} ({study})", title_justify="left")
    for path, value in leaves(config):
        if path not in ("search_space",):
            settings.add_row(path, str(value))
    console.print(settings)
    space = Table("path", "distribution", "only where", title="Search space", title_justify="left")
    for row in describe(config.search_space):
        space.add_row(*row)
    console.print(space)
    combinations = size(config.search_space, config.trial)
    fingerprints = prepare_image_sets(config)
    device = pick_device("cpu" if config.resources.gpus_per_trial == 0 else "auto")
    cost = estimate_cost(config, device, local_storage(config.storage))
    lines = {
        "image sets": ", ".join(f"{role} {fingerprint[:12]}" for role, fingerprint in fingerprints.items()),
        "combinations": "infinitely many" if combinations is None else str(combinations),
        "trials": f"{cost.num_search} of the search + {cost.num_controls} controls, {cost.concurrency} at a time",
        "cost": f"{duration(cost.device_seconds)} of {device_name(device)}, {duration(cost.wall_seconds)} of waiting at most: "
        "nothing shared, nothing stopped early",
        "measured": ", ".join(f"{name} {1 / seconds:,.0f} images/s" for name, seconds in cost.seconds_per_image.items()),
    }
    for name, text in lines.items():
        console.print(f"{name + ':':<14}{text}", highlight=False)
