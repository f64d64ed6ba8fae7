"""What an experience store says of itself in a terminal: ``emoreg experience list|prune``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.table import Table

from emoreg.errors import StorageError
from emoreg.formatting import duration
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Entry, day_text, entries, ledger, prune, size_text
from emoreg.storage.locks import FileLocks


def print_inventory(uri: str, console: Console) -> None:
    """Every experience of the store at ``uri``, and the ledger by study.

    Raises:
        StorageError: for a store that cannot be read.
    """
    files = Files(uri)
    with _readable(files):
        everything = entries(files)
    if not everything:
        console.print(f"There is no experience in {files.uri}.", markup=False, soft_wrap=True)
        return
    title = f"Experiences in {files.uri}: {size_text(sum(entry.size for entry in everything))}"
    table = _table(title, "experience", "epochs", "size", "used by", "last used", "paid,\nhours", "saved,\nhours")
    for entry in sorted(everything, key=lambda entry: entry.used, reverse=True):
        table.add_row(
            entry.key + "\n" + _made_by(entry).replace(", ", "\n", 1),
            " ".join(map(str, entry.lengths)),
            size_text(entry.size),
            _used_by(entry),
            day_text(entry.used),
            f"{entry.paid_seconds / 3600:.2f}",
            f"{entry.saved_seconds / 3600:.2f}",
        )
    console.print(table)
    accounts = ledger(everything)
    if accounts:
        console.print()
        table = _table("Pre-training by study", "study", "trials", "paid", "reused", "saved")
        for account in accounts:
            seconds = (duration(account.paid_seconds), duration(account.reused_seconds))
            table.add_row(account.study, str(account.num_trials), *seconds, f"{account.saved:.0%}")
        console.print(table)
        console.print("reused: found in the store instead of trained. saved: its share of both.", highlight=False)


def print_pruning(uri: str, budget_gib: float, console: Console, *, dry_run: bool) -> None:
    """Bring the store at ``uri`` down to a budget, and say what went and what had to stay.

    Raises:
        StorageError: for a store that cannot be read or written.
    """
    files = Files(uri)
    with _readable(files):
        pruned = prune(files, FileLocks.of(files), round(budget_gib * 2**30), dry_run=dry_run)
    for entry in pruned.removed:
        verb = "would remove" if dry_run else "removed"
        said = f"{verb} {entry.key}: {_made_by(entry)}, {size_text(entry.size)}, last used {day_text(entry.used)}"
        console.print(said, markup=False, soft_wrap=True)
    for entry, reason in pruned.kept:
        console.print(f"kept {entry.key}: {size_text(entry.size)}, {reason}", markup=False, soft_wrap=True)
    freed = pruned.size_before - pruned.size_after
    would = "would free" if dry_run else "freed"
    said = f"{would} {size_text(freed)} of {size_text(pruned.size_before)} in {files.uri}; budget {budget_gib:g} GiB"
    if pruned.size_after > budget_gib * 2**30:
        said += f": {size_text(pruned.size_after)} is left, because it is needed"
    console.print(said, markup=False, soft_wrap=True)


@contextmanager
def _readable(files: Files) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"an experience store must be a folder or bucket that can be read and written, but {files.uri!r} is not ({error}): "
            "correct it, or mend its permissions"
        ) from error


def _made_by(entry: Entry) -> str:
    made = entry.made
    if made is None:
        return "unknown"
    return f"{made.backbone}, {made.stimuli}{' shuffled' if made.shuffled else ''}, seed {made.seed}"


def _used_by(entry: Entry) -> str:
    studies = sorted({use.study for use in entry.uses})
    num_trials = len({use.identity for use in entry.uses})
    return f"{num_trials} trial{'' if num_trials == 1 else 's'} of {', '.join(studies)}" if studies else "nobody"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        is_text = column in ("experience", "epochs", "used by", "study")
        may_wrap = column in ("epochs", "used by", "study")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not may_wrap)
    return table
