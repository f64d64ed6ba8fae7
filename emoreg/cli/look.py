"""What is seen of a study from outside: how it stands, what of it is whole, what it concludes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from emoreg.cli.terminal import plain_table, terminal
from emoreg.formatting import by_status, configuration, control_name, counted, duration, metric_name, metric_text, metric_value
from emoreg.results.status import Status, age


def print_verified(place: str, console: Console) -> int:
    """What of a study's stored files is whole; the exit code."""
    from emoreg.tuning.verify import Verified, verify

    damaged: list[Verified] = []
    whole: Counter[str] = Counter()
    for found in verify(place):
        if found.problem is None:
            whole[found.kind] += 1
        else:
            damaged.append(found)
            console.print(f"damaged: {found.name}: {found.problem}", style="red")
    kinds = ", ".join(f"{kind} {count}" for kind, count in whole.items())
    console.print(f"{counted(whole.total(), 'file')} whole ({kinds}), {counted(len(damaged), 'file')} damaged")
    return 1 if damaged else 0


def print_status(status: Status, console: Console) -> None:
    """How a study stands, for a person."""

    line = partial(console.print, markup=False, soft_wrap=True)
    trials, best = status.trials, status.best
    line(f"{status.name}: {_state(status)}", style="bold")
    counts = {"finished": trials.finished, "pruned": trials.pruned, "failed": trials.failed}
    counts |= {"running": len(status.running or ()), "waiting for pre-training": status.num_waiting or 0}
    line(f"  trials    {trials.ended}/{trials.planned}: {by_status(counts)}")
    if status.state == "running":
        left = "not known yet" if status.seconds_left is None else f"about {duration(status.seconds_left)}"
        line(f"  time left {left}")
    if status.slots is not None:
        waiting = "" if status.waiting_share is None else f", {100 * status.waiting_share:.0f} % of their time spent waiting"
        line(f"  slots     {status.slots}{waiting}")
    if status.used:
        line(f"  budget    {status.used}")
    if best is not None:
        found = configuration(best.backbone, best.params)
        line(f"  best      {metric_text(best.metric, best.value)}: {found} (trial {best.identity})", style="green")
    elif status.confirmation is None:
        line("  best      no searched trial has finished yet")
    for params in status.enqueued:
        line(f"  enqueued  {' '.join(f'{path}={value}' for path, value in params.items())}")
    if status.searches:
        what = "best value" if best is None else f"best {metric_name(best.metric)}"
        table = plain_table("  searches of controls", "trials", what, right=("trials",))
        for search in status.searches:
            value = "" if search.best is None or best is None else metric_value(best.metric, search.best)
            table.add_row(f"  {control_name(search.control)}", f"{search.ended}/{search.planned}", value)
        console.print(table)
    if status.confirmation is not None:
        table = plain_table("  seeds done", "backbone", "finished", right=("finished",))
        for row in status.confirmation:
            table.add_row(f"  {control_name(row.control)}", row.backbone, f"{row.finished}/{row.planned}")
        console.print(table)
    if status.running:
        numbers = ("epoch", "accuracy, %")
        table = plain_table("  running now", "trial", "backbone", "stage", *numbers, right=numbers)
        for trial in status.running:
            table.add_row(
                f"  {trial.what}", trial.identity, Text(trial.backbone), trial.stage or "starting", trial.progress, trial.score
            )
        console.print(table)


def print_report(places: Sequence[str], output: str | None, *, price_per_hour: float | None, images: bool) -> None:
    """Write the report of one study, or of several side by side, and print what it concludes.

    Raises:
        UserError: see ``write_report``.
    """
    from emoreg.report import ReportWarning, read_studies, write_report
    from emoreg.report.answer import notes, verdicts_of
    from emoreg.results.across import across_line

    studies, console = read_studies(places), terminal()
    with Progress(console=console, transient=True) as progress, warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ReportWarning)
        tasks = {what: progress.add_task(what) for what in ("Making figures", "Drawing images")[: 1 + images]}
        path = write_report(
            studies,
            output=output,
            price_per_hour=price_per_hour,
            images=images,
            on_progress=lambda what, done, total: progress.update(tasks[what], completed=done, total=total),
        )
    for study in studies:
        for verdict in verdicts_of(study):
            console.print(f"{study.name}: {verdict.sentence}" if len(studies) > 1 else verdict.sentence, style="bold")
        for note in notes(study):
            console.print(note, style="yellow")
    if len(studies) > 1 and (line := across_line(studies)):
        console.print(line, style="bold")
    console.print(f"report:  {path}")
    for warning in left_out:
        console.print(f"figures: {warning.message}")
    if images and not left_out:
        console.print(f"figures: {path.parent / 'figures'} (as PNG and SVG)")


def _state(status: Status) -> str:
    when = "" if status.last_ended is None else f"; its last trial ended {duration(age(status.last_ended))} ago"
    if status.state == "running":
        return "starting" if status.started is None else f"running for {duration(age(status.started))}"
    if status.state == "not run":
        return f"not run yet{when}"
    if status.ending == "completed":
        return f"done, every trial has ended{when}"
    stopped = {
        None: "killed, for its last run has no end and no driver lives",
        "interrupted": "interrupted" if status.stop_reason is None else f"stopped {status.stop_reason}",
        "aborted": "stopped by faults in code",
    }
    return f"{stopped[status.ending]}{when}; run it again to go on"
