"""What a storage holds besides studies: ``emoreg experience list|prune``, ``emoreg data list|prepare|show``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emoreg.cli.options import reading
from emoreg.cli.terminal import new_table
from emoreg.config import ImageSetConfig
from emoreg.formatting import counted, duration
from emoreg.results.analysis import DeviceTime
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use, day_text, entries, prune, size_text
from emoreg.storage.locks import FileLocks
from emoreg.storage.working_copy import join

_TEXTS = ("experience", "epochs", "used by", "study")
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
    table = _table(title, "experience", "epochs", "size", "used by", "last used", "paid,\nhours", "saved,\nhours")
    for entry in sorted(everything, key=lambda entry: entry.last_used, reverse=True):
        spent = _spent(entry.uses)
        trials, studies = {use.identity for use in entry.uses}, sorted({use.study for use in entry.uses})
        table.add_row(
            entry.key + "\n" + (entry.description or "unknown").replace(", ", "\n", 1),
            " ".join(map(str, entry.lengths)),
            size_text(entry.size),
            f"{counted(len(trials), 'trial')} of {', '.join(studies)}" if studies else "nobody",
            day_text(entry.last_used),
            f"{spent.paid / 3600:.2f}",
            f"{spent.reused / 3600:.2f}",
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
        column.no_wrap = column.header not in _TEXTS[1:]
    return table


def print_readers(console: Console) -> None:
    """The readers of image sets, and where to get what they read."""
    from emoreg.data import IMAGE_SETS

    for name, reader in IMAGE_SETS.items():
        console.print(f"{name} ({reader.kind}): {reader.description}", soft_wrap=False)
        lines = Table.grid(padding=(0, 2))
        lines.add_column(no_wrap=True)
        texts = {
            "from": reader.source,
            "--path": reader.layout,
            "--target": ", ".join(reader.targets),
            "licence": reader.licence,
        }
        for label, text in texts.items():
            lines.add_row(f"  {label}", text)
        console.print(lines)


def print_image_set(config: ImageSetConfig, image_size: int, storage: str, sheet: Path | None, console: Console) -> None:
    """Prepare an image set for a storage and say what it has; ``sheet`` is the file of a contact sheet, if one is wanted.

    Raises:
        UserError: for an image set or a storage that cannot be used.
    """
    from emoreg.data import check, contact_sheet, load
    from emoreg.data.fetch import offer
    from emoreg.tuning.images import image_storage
    from emoreg.tuning.preflight import check_storage

    check(config)
    check_storage(storage)
    image_set = load(config, image_size=image_size, storage=image_storage(storage))
    offer(config, image_size=image_size, storage=image_storage(storage), files=Files(join(storage, "imagesets")))
    console.print(
        f"{image_set.name}: {len(image_set.train)} training and {len(image_set.test)} test images of {image_size} px, "
        f"fingerprint {image_set.fingerprint[:12]}"
    )
    console.print(f"{'targets' if image_set.regression else 'classes'}: {', '.join(image_set.class_names)}")
    for what, count in image_set.summary.items():
        console.print(f"  {count} x {what}")
    if sheet is not None:
        contact_sheet(image_set, sheet)
        console.print(f"contact sheet: {sheet}")
