"""Image sets in the terminal: ``emoreg data list|prepare|show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.cli.terminal import plain_table
from emoreg.config import ImageSetConfig
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join

if TYPE_CHECKING:
    from emoreg.data import ImageSet

_LINES = 21
"""Lines of the tables: with the prompts, the title and the contact sheet's place, a screen of 24."""
_NOTES_SHOWN = 6
_TEXT_WIDTH = 60
_LAST = ("converted", "turned")
"""How the notes begin that matter least."""


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
            "--group": reader.groups or "none",
            "licence": reader.licence,
        }
        for label, text in texts.items():
            lines.add_row(f"  {label}", text)
        console.print(lines)


def print_image_set(config: ImageSetConfig, image_size: int, storage: str, sheet: Path | None, console: Console) -> None:
    """Prepare an image set for a storage and say how it was understood; ``sheet`` is a contact sheet's file, if one is wanted.

    Raises:
        UserError: for an image set or a storage that cannot be used.
    """
    from emoreg.data import check, contact_sheet, load
    from emoreg.data.fetch import offer
    from emoreg.tuning.images import image_storage

    check(config)
    Files(storage).check()
    image_set = load(config, image_size=image_size, storage=image_storage(storage))
    offer(config, image_size=image_size, storage=image_storage(storage), files=Files(join(storage, "imagesets")))
    console.print(
        f"{image_set.name}: {len(image_set.train)} training and {len(image_set.test)} test images of {image_size} px, "
        f"fingerprint {image_set.fingerprint[:12]}"
    )
    splits, copies, notes = _splits(image_set), _copies(image_set, config, storage), _notes(image_set)
    room = _LINES - sum(2 + table.row_count for table in (splits, copies, notes) if table.row_count) - 2
    for table in (splits, _targets(image_set) if image_set.regression else _classes(image_set, room), copies, notes):
        if table.row_count:
            console.print()
            console.print(table, soft_wrap=False)
    if sheet is not None:
        contact_sheet(image_set, sheet)
        console.print(f"contact sheet: {sheet}")


def _splits(image_set: ImageSet) -> Table:
    """How many images each split has, and where they come from."""
    groups = [] if image_set.train.num_groups is None else ["groups"]
    table = _table("split", "images", *groups, "from")
    kind = "split" if image_set.regression else "class"
    divided = f"a fifth of {'train' if kind == 'split' else 'each class of train'}{', groups whole' if groups else ''}"
    absent = {"train": "its reader", "test": divided}
    for name, split in (("train", image_set.train), ("test", image_set.test)):
        counts = [str(count) for count in (len(split), split.num_groups) if count is not None]
        table.add_row(name, *counts, _line(image_set.origins.get(name, absent[name])))
    return table


def _copies(image_set: ImageSet, config: ImageSetConfig, storage: str) -> Table:
    """How many images are on both sides of a cut: of the test split, and of the validation split as it is cut by default."""
    from emoreg.data.duplicates import count_test_copies, count_validation_copies
    from emoreg.tuning.images import image_storage

    table, folder = _table("also in train", "exact", "near"), image_storage(storage) / "imagesets" / "duplicates"
    found = {
        "test": count_test_copies(image_set, folder),
        f"validation ({config.validation_fraction:.0%} of train)": count_validation_copies(image_set, config, folder),
    }
    for name, copies in found.items():
        if copies.exact or copies.near != 0:
            table.add_row(name, str(copies.exact), "not looked for" if copies.near is None else str(copies.near))
    return table


def _classes(image_set: ImageSet, room: int) -> Table:
    """How many images each class has in each split; those for which there is no ``room``, together."""
    names = image_set.class_names
    table = _table("class", "train", "test")
    counts = np.array([np.bincount(split.targets, minlength=len(names)) for split in (image_set.train, image_set.test)])
    shown = len(names) if len(names) <= room else room - 1
    for name, numbers in zip(names[:shown], counts.T, strict=False):
        table.add_row(_line(name), *map(str, numbers))
    if shown < len(names):
        table.add_row(f"{len(names) - shown} others", *map(str, counts[:, shown:].sum(axis=1)))
    return table


def _targets(image_set: ImageSet) -> Table:
    """Between which numbers each target of the training split lies."""
    table = _table("target", "lowest", "highest")
    for name, values in zip(image_set.class_names, image_set.train.targets.T, strict=True):
        table.add_row(_line(name), f"{values.min():.2f}", f"{values.max():.2f}")
    return table


def _notes(image_set: ImageSet) -> Table:
    """What was passed over, left out, refused or changed, and how often; notes beyond a screen together."""
    table = _table("note", "count")
    notes = sorted(image_set.summary.items(), key=lambda note: note[0].startswith(_LAST))
    shown = len(notes) if len(notes) <= _NOTES_SHOWN else _NOTES_SHOWN - 1
    for what, count in notes[:shown]:
        table.add_row(_line(what), str(count))
    if shown < len(notes):
        table.add_row(f"{len(notes) - shown} other notes", str(sum(count for _, count in notes[shown:])))
    return table


def _table(*columns: str) -> Table:
    """An empty table, some columns of which are numbers."""
    return plain_table(*columns, right=("images", "groups", "count", "exact", "near", "train", "test", "lowest", "highest"))


def _line(text: str) -> Text:
    """As much of a text as leaves room for the numbers beside it."""
    line = Text(text)
    line.truncate(_TEXT_WIDTH, overflow="ellipsis")
    return line
