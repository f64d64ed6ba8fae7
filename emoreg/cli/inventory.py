"""What the experience store holds: ``emoreg experience list|prune``."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from emoreg.cli.options import reading
from emoreg.cli.terminal import new_table
from emoreg.formatting import counted, duration
from emoreg.results.analysis import DeviceTime
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use, day_text, entries, prune, size_text
from emoreg.storage.locks import FileLocks

_TEXTS = ("experience", "epochs", "study")
_REFUSAL = (
    "Correct the store's place, or mend its permissions: an experience store must be a folder or bucket that can be read and "
    "written, but {!r} is not"
)


def print_inventory(uri: str, console: Console) -> None:
    """Every experience of the store at ``uri``, and what pre-training cost and saved, by study.

    Raises:
        StorageError: for a store that cannot be read.
    """
    files = Files(uri)
    with reading(_REFUSAL.format(files.uri)):
        everything = entries(files)
    if not everything:
        console.print(f"There is no experience in {files.uri}.")
        return
    title = f"Experiences in {files.uri}: {size_text(sum(entry.size for entry in everything))}"
    table = _table(title, *_TEXTS[:2], "size", "last used", "paid", "saved")
    for entry in sorted(everything, key=lambda entry: entry.last_used, reverse=True):
        spent = _spent(entry.uses)
        trials, studies = {use.identity for use in entry.uses}, sorted({use.study for use in entry.uses})
        table.add_row(
            f"{entry.key}\n{entry.description or 'unknown'}\n"
            + (f"used by {counted(len(trials), 'trial')} of {', '.join(studies)}" if studies else "used by nobody"),
            " ".join(map(str, entry.lengths)),
            size_text(entry.size),
            day_text(entry.last_used),
            duration(spent.paid),
            duration(spent.reused),
        )
    console.print(table)
    uses = [use for entry in everything for use in entry.uses]
    if not uses:
        return
    console.print()
    table = _table("Pre-training by study", "study", "trials", "paid", "reused", "saved")
    for study in sorted({use.study for use in uses}):
        own = [use for use in uses if use.study == study]
        spent = _spent(own)
        num_trials = len({use.identity for use in own})
        table.add_row(study, str(num_trials), duration(spent.paid), duration(spent.reused), f"{spent.saved:.0%}")
    console.print(table)
    console.print("reused: found in the store instead of trained. saved: its share of both.")


def print_pruning(uri: str, budget_gib: float, console: Console, *, dry_run: bool) -> None:
    """Bring the store at ``uri`` down to a budget, and say what went and what had to stay.

    Raises:
        StorageError: for a store that cannot be read or written.
    """
    files = Files(uri)
    with reading(_REFUSAL.format(files.uri)):
        pruned = prune(files, FileLocks.of(files), round(budget_gib * 2**30), dry_run=dry_run)
    verb, would = ("would remove", "would free") if dry_run else ("removed", "freed")
    for entry in pruned.removed:
        size, day = size_text(entry.size), day_text(entry.last_used)
        console.print(f"{verb} {entry.key}: {entry.description or 'unknown'}, {size}, last used {day}")
    for entry, reason in pruned.kept:
        console.print(f"kept {entry.key}: {size_text(entry.size)}, {reason}")
    freed, left = size_text(pruned.size_before - pruned.size_after), ""
    if pruned.size_after > budget_gib * 2**30:
        left = f": {size_text(pruned.size_after)} is left, because it is needed"
    console.print(f"{would} {freed} of {size_text(pruned.size_before)} in {files.uri}; budget {budget_gib:g} GiB{left}")


def _spent(uses: Iterable[Use]) -> DeviceTime:
    rows = list(uses)
    return DeviceTime(
        paid=math.fsum(use.paid_seconds for use in rows),
        reused=math.fsum(max(0.0, use.experience_seconds - use.paid_seconds) for use in rows),
        regulation=0.0,
    )


def _table(title: str, *columns: str) -> Table:
    table = new_table(title, *columns, right=[column for column in columns if column not in _TEXTS])
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = column.header not in _TEXTS
    return table
