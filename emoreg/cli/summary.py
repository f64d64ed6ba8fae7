"""What a study says of itself in a terminal: its plan before it runs, its answer when it has."""

from __future__ import annotations

import itertools
import math
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from emoreg.cli.terminal import new_table
from emoreg.config import CONFIRM, PretrainingConfig, RegulationConfig, StudyConfig, Value, leaves, registries
from emoreg.config.arms import arms
from emoreg.config.schedules import balance_travel, length_dependence
from emoreg.config.search_space import describe, size
from emoreg.config.trial import KINDS_OF_ONE_LEARNED_BALANCE
from emoreg.errors import Interrupted, StudyAborted
from emoreg.formatting import control_name, counted, duration, format_params, of_one_seed, p_cell
from emoreg.report.reproduce import confirm_command
from emoreg.results.analysis import waiting_share
from emoreg.results.confirmation import Confirmed
from emoreg.results.ladder import LEVEL
from emoreg.results.power import MOST_SEEDS, POWER
from emoreg.results.records import TrialRecord
from emoreg.results.statistics import Comparison
from emoreg.results.study import StudyResults
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import size_text
from emoreg.storage.working_copy import join

if TYPE_CHECKING:
    from emoreg.tuning.confirm import ConfirmationPlan

_ACCURACY, _GAIN = "validation\naccuracy, %", "regulation\ngains, points"
_WIDE, _NARROW_CELL = 90, 36
"""Columns of a page from which on nothing is folded, and what 80 columns leave for a parameter."""


def print_summary(study: StudyResults, console: Console) -> None:
    """The answer: best configurations by backbone, regulation beside its controls, and where everything lies."""
    _print_best(study, console)
    console.print()
    if study.controls:
        _print_controls(study, console)
        console.print()
    share = waiting_share(study.runs)
    if share >= 0.01:
        console.print(
            f"{100 * share:.0f} % of the slots' time went into waiting for pre-training that another trial was doing."
        )
    for record in study.trials:
        if record.status == "failed":
            console.print(f"failed: trial {record.identity}: {record.message}", style="red")
    print_places(study.place, console)
    if study.leading:
        console.print(f"next:         {confirm_command(study)}  (the answer, on the test set)")


def exit_code(study: StudyResults, ended: Interrupted | StudyAborted | None, command: str, console: Console) -> int:
    """Say how to go on where the run of a study did not end by itself; the exit code."""
    match ended:
        case Interrupted():
            is_signalled = not study.runs or study.runs[-1].stop_reason is None
            console.print(f"{'Interrupted: run the same command again to go on.' if is_signalled else ended}\n  {command}")
            return 130
        case StudyAborted():
            console.print(f"{ended}\n  {command}")
            return 1
    return 1 if any(record.status == "failed" for record in study.trials) else 0


def print_places(place: str, console: Console) -> None:
    """Where a study's records are, and what shows them: a confirmation is reported with its study."""
    base, question, query = (place, "", "") if Files(place).folder is not None else place.partition("?")
    reported = base.removesuffix(CONFIRM) + question + query
    console.print(f"records:      {join(place, 'records')}")
    console.print(f"report:       emoreg report {shlex.quote(reported)}  (one HTML file, with every figure)")
    console.print(f"TensorBoard:  emoreg tensorboard {shlex.quote(place)}")


def print_confirmation_plan(name: str, plan: ConfirmationPlan, console: Console) -> None:
    """What the confirmation of the study ``name`` fixes, what it will cost, and what it could show."""
    table = new_table(f"Chosen of {name!r}, on validation", "trial", _ACCURACY, "parameters", right=(_ACCURACY,))
    chosen = {found.identity: found for found, _ in plan.trials}
    for found in chosen.values():
        params = _params_cell(found.params, console)
        table.add_row(f"{found.backbone}\n{found.identity}", _percent(found.val_accuracy), params)
        for tuned in (item for item in plan.tuned if item.chosen == found.identity):
            params = _params_cell(tuned.params, console) or "nothing to search"
            table.add_row(f"{tuned.rival.label}\n{tuned.identity}", _percent(tuned.val_accuracy), params)
    console.print(table)
    seeds = sorted({trial.config.seed for _, trial in plan.trials})
    controls = list(dict.fromkeys(control_name(trial.config.control) for _, trial in plan.trials))
    num_trials = len({trial.identity for _, trial in (*plan.trials, *plan.tuned_trials)})
    twice = (
        "; the controls at its settings, and those that were tuned at the two best of their own searches too"
        if plan.tuned
        else ""
    )
    console.print(
        f"{num_trials} trials: {', '.join(controls)}, on seeds {seeds[0]} to {seeds[-1]}{twice}. About "
        f"{duration(plan.expected_seconds)} of the device, by what the search's trials took; each opens "
        "the test set once.",
    )
    console.print(_images_of(plan))
    if plan.looks:
        console.print(
            f"The answer is looked at after {plan.looks[0]} seeds and, unless it is clear by then, after {plan.looks[1]} "
            "(O'Brien and Fleming's bounds)."
        )
    _print_power(plan, console)
    opened = [record for record in plan.searched.values() if record.test_accuracy is not None]
    if opened:
        console.print(
            f"The test set has been opened by {counted(len(opened), 'trial')} of the study already (`emoreg trial --evaluate "
            "test`): what was chosen since may have been chosen knowing it, and the report will say so.",
            style="yellow",
        )


def _images_of(plan: ConfirmationPlan) -> str:
    """Which images the trials train on."""
    counts = " or ".join(f"{count:,} images of {task}" for task, count in plan.num_task_images.items())
    return (
        f"They train on the whole training split, or a subset of num_images ({counts}): nothing is held out, as nothing is "
        "selected; each seed has cuts of its own, alike for all controls."
    )


def _print_power(plan: ConfirmationPlan, console: Console) -> None:
    """What the confirmation could show, before anything of it is known."""
    unknown = [found.name for found, _ in plan.trials if found.identity not in plan.prospects]
    if unknown:
        console.print(
            f"What could be shown of {', '.join(dict.fromkeys(unknown))} is not known: only controls on several seeds tell how "
            "far gains vary (--control-seeds 0 1 2).",
            style="yellow",
        )
    if not plan.prospects:
        return
    n = plan.num_seeds
    columns = (
        "configuration",
        "sd of a gain,\npoints",
        "first rung\nreached",
        "last rung\nreached",
        f"seeds for\n{100 * POWER:.0f} %",
    )
    table = new_table(
        f"If regulation is {plan.asked.smallest_effect:g} points above every control, the chance to show it on {n} seeds",
        *columns,
        right=columns[1:],
    )
    for found in plan.prospects.values():
        likely, unlikely = found.power(n), found.power(n, found.spread.upper)
        spread = f"{found.spread.deviation:.2f} ({found.spread.upper:.2f})"
        seeds = [found.seeds(deviation) for deviation in (found.spread.deviation, found.spread.upper)]
        fewest, most = (f"over {MOST_SEEDS}" if number is None else str(number) for number in seeds)
        chances = [f"{100 * likely[rung]:.0f} % ({100 * unlikely[rung]:.0f} %)" for rung in (0, -1)]
        table.add_row(found.name, spread, *chances, f"{fewest} ({most})")
    console.print(table)
    tried = max(len(found.rungs) for found in plan.prospects.values())
    console.print(
        f"The ladder has {counted(tried, 'rung')} here. sd: from seed to seed, by the search's controls on validation; in "
        "brackets, were it at the upper limit of its one-sided 80 % interval. The search has one cut of the images: what cuts "
        "of each seed's own add is not in it."
    )


def print_confirmation(study: StudyResults, console: Console) -> None:
    """The answer of a confirmation: each configuration beside its controls on the test set, and what may be said."""
    console.print()
    if study.confirmed:
        of = ", each at its own best" if study.same_settings else ""
        console.print(_confirmed_table(f"Regulation beside its controls{of}, on the test set", study.confirmed))
        if study.same_settings:
            title = "The mechanism: controls at regulation's settings, on the test set"
            console.print(_confirmed_table(title, study.same_settings))
        console.print(
            "Gains are paired by seed. p: one-sided t-test of its row alone; the verdict has the ladder's, which holds at "
            f"{LEVEL} or below. 95 % intervals by Student's t: of a gain for all rows of its table together, of an accuracy "
            f"for it alone.{' p and intervals of gains hold for both looks.' if study.opening and study.opening.looks else ''}",
        )
        console.print()
    for verdict in study.verdicts.values():
        console.print(verdict.sentence, style="bold")
    if study.exploratory:
        console.print(f"Exploratory: {study.exploratory}. What is shown may have been chosen knowing it.", style="yellow")
    print_places(study.place, console)


def _confirmed_table(title: str, found: Iterable[Confirmed]) -> Table:
    columns = ("backbone", "trial", "test\naccuracy, %", "gain,\npoints", "95 % interval,\nall rows", "p", "n")
    table = new_table(title, *columns, right=columns[2:])
    table.padding = (0, 1, 0, 0)  # 80 columns are enough then
    shown = [*found]
    has_tuned = any(row.is_tuned for row in shown)
    for chosen, rows in itertools.groupby(shown, key=lambda row: row.chosen):
        for row in rows:
            accuracy, is_compared = row.accuracy, row.comparison is not None
            name = row.rival.label + ("" if row.is_tuned or not (has_tuned and is_compared) else ", not tuned")
            table.add_row(chosen.name, name, str(accuracy), *_compared(row.comparison), str(accuracy.n))
        table.add_section()
    return table


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.1f}"


def _params_cell(params: Mapping[str, Value], console: Console) -> str:
    """A parameter a line: where the page is narrow, the last part of a long path stands below the others."""
    lines = format_params(params)
    if console.width < _WIDE:
        lines = [_folded(line) if len(line) > _NARROW_CELL else line for line in lines]
    return "\n".join(lines)


def _folded(line: str) -> str:
    path, value = line.split(" ", 1)
    before, dot, last = path.rpartition(".")
    return f"{before}{dot}\n  {last} {value}"


def _compared(found: Comparison | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    interval = "" if found.interval is None else f"{100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f}"
    return f"{100 * found.mean:+.1f}", interval, p_cell(found.p_better)


def _print_best(study: StudyResults, console: Console) -> None:
    metrics = [objective.metric for objective in study.objectives]
    title = f"Best of the search by backbone, selected on {metrics[0]}"
    if len(metrics) > 1:
        title = f"Pareto front of the search in {' and '.join(metrics)}"
    seconds = "device\nseconds"
    table = new_table(title, "trial", _ACCURACY, seconds, "parameters", right=(_ACCURACY, seconds))
    found = [(record.backbone, record) for record in study.leading]
    found += [(f"{backbone}\n{control_name(control)}", record) for (control, backbone), record in study.tuned.items()]
    for name, record in found:
        numbers = _percent(record.val_accuracy), f"{record.device_seconds:.1f}"
        table.add_row(f"{name}\n{record.identity}", *numbers, _params_cell(record.sampled, console))
    console.print()
    console.print(table if study.leading else "No trial of the search has finished.")


def _print_controls(study: StudyResults, console: Console) -> None:
    best: Mapping[str, TrialRecord] = study.best if len(study.objectives) == 1 else {}
    title = "Regulation as configured, beside its controls"
    table = new_table(title, "backbone", "trial", _ACCURACY, _GAIN, "seeds", right=(_ACCURACY, _GAIN, "seeds"))
    for backbone in dict.fromkeys((*study.backbones, *(row.backbone for row in study.controls))):
        for row in study.controls:
            if row.backbone == backbone:
                gain = "" if row.gain is None else (f"+{row.gain}" if row.gain.mean >= 0 else str(row.gain))
                table.add_row(backbone, control_name(row.control), str(row.accuracy), gain, str(row.accuracy.n))
        found = best.get(backbone)
        if found is not None and found.val_accuracy is not None and any(row.backbone == backbone for row in study.controls):
            table.add_row(backbone, "best of the search", f"{100 * found.val_accuracy:.1f}", "", "1")
        table.add_section()
    console.print(table)
    if best:
        console.print(
            f"best of the search: selected{of_one_seed(study.config)}, so its accuracy flatters; the others were not."
        )
    if max(row.accuracy.n for row in study.controls) < 2:
        console.print("One seed tells nothing about chance: add some with --control-seeds 0 1 2.")
    else:
        console.print("±: 95 % confidence over seeds (Student's t; gains paired by seed).")


def print_plan(reference: str, config: StudyConfig, console: Console) -> None:
    """The plan: the resolved configuration, the search space, how many trials, and what they would cost at most.

    Raises:
        UserError: for a study that could not run, or image sets that cannot be used as it asks.
    """
    from emoreg.training.devices import device_name, pick_device
    from emoreg.tuning.disk import estimate_disk
    from emoreg.tuning.estimate import estimate_cost
    from emoreg.tuning.images import image_set_bytes, image_storage, prepare_image_sets
    from emoreg.tuning.preflight import check_study

    check_study(config)
    fingerprints = prepare_image_sets(config)
    device = pick_device("cpu" if config.resources.gpus_per_trial == 0 else "auto")
    copies = image_storage(config.storage)
    cost = estimate_cost(config, device, copies)
    disk = estimate_disk(config, slots=cost.concurrency)
    _print_settings(reference, config, console)
    combinations = size(config.search_space, config.trial)
    searching = [arm.trial.control for arm in arms(config)]
    tuning = f"{cost.num_tuning} of the searches of {', '.join(searching)} + " if searching else ""
    stopped, at_most = "nothing stopped early", "if no pre-training is shared"
    if config.scheduler.name != "none":
        stopped, at_most = f"as many stopped by {config.scheduler.name} as by chance", f"{at_most} and nothing stopped early"
    plan = {
        "image sets": ", ".join(f"{name} {fingerprint[:12]}" for (name, *_), fingerprint in fingerprints.items()),
        "combinations": "infinitely many" if combinations is None else str(combinations),
        "pre-training": _sharing(config.trial.pretraining),
        "trials": f"{cost.num_search} of the search + {tuning}{cost.num_controls} controls, {cost.concurrency} at a time",
        "cost": f"about {duration(cost.expected_seconds)} of {device_name(device)}, {duration(cost.wall_seconds)} of waiting, "
        f"{stopped}; {duration(cost.device_seconds)} of {device_name(device)} {at_most}",
        "disk": f"{disk}, at most; image sets {size_text(image_set_bytes(config))}; "
        f"{size_text(shutil.disk_usage(copies).free)} free at {copies}",
        "measured": ", ".join(
            f"{backbone}{'' if width == config.trial.width else f' of width {width}'} {1 / seconds:,.0f} images/s"
            for (backbone, width), seconds in cost.seconds_per_image.items()
        )
        + " for a training step of one encoder",
    }
    if config.regulation_kinds() & set(KINDS_OF_ONE_LEARNED_BALANCE):
        plan["learned balance"] = _travel(config.trial.regulation, cost.num_regulation_steps)
    own = [f"{registry.kind} {name}" for registry in registries() for name in registry.user_names()]
    if own:
        plan["registered"] = ", ".join(own)
    grid = Table.grid(padding=(0, 2))
    for name, text in plan.items():
        grid.add_row(name, text)
    console.print(grid)


def _print_settings(reference: str, config: StudyConfig, console: Console) -> None:
    """Every setting of a study, and which of them are searched; then over which distributions."""
    table = new_table(f"Study {config.name!r} ({reference})", "setting", "value")
    table.columns[0].no_wrap = True
    for path, value in leaves(config.without_password()):
        is_shown = path.partition(".")[0] not in ("search_space", "confirmed")
        if is_shown and value != {}:  # resources_by_backbone, where it is empty
            searched = path.removeprefix("trial.") in config.search_space
            table.add_row(path, _as_text(value) + (" (searched)" if searched else ""))
    console.print(table)
    console.print()
    table = new_table("Search space", "path", "distribution", "only where")
    table.columns[0].no_wrap = True
    for row in describe(config.search_space):
        table.add_row(*row)
    console.print(table)
    console.print()


def _sharing(pretraining: PretrainingConfig) -> str:
    """What lengths share of pre-training."""
    constant = replace(pretraining, cooldown_epochs=0)
    upto = f", up to its cool-down of {counted(pretraining.cooldown_epochs, 'epoch')}" if pretraining.cooldown_epochs else ""
    return length_dependence(constant) or f"shared: a longer one continues a shorter one{upto}"


def _travel(regulation: RegulationConfig, num_steps: int) -> str:
    """How far a learned balance can go."""
    if regulation.optimizer.name != "adamw":
        return f"goes as far as its gradient takes it in {num_steps:,} steps"
    travel = balance_travel(regulation, num_steps)
    low, high = (1 / (1 + math.exp(-logit)) for logit in (-travel, travel))
    return f"from 0.5 to {low:.2g} or {high:.2g} at most: AdamW moves its logit by up to {travel:.2g} in {num_steps:,} steps"


def _as_text(value: Any) -> str:
    """A setting's value as the command line would take it."""
    if isinstance(value, Mapping):
        return " ".join(f"{path}={_as_text(chosen)}" for path, chosen in value.items())
    return " ".join(map(_as_text, value)) if isinstance(value, tuple) else str(value)
