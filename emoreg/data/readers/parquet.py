"""Images in Parquet: one file or a folder of shards, local or behind any URI that pyarrow.fs opens (s3://, gs://, hdfs://).

`emoreg.data.readers.shards` says which files are read, `emoreg.data.readers.columns` what of them. Class names come from the
schema's metadata (`class_names`, a JSON list), from Hugging Face's `ClassLabel` feature, or from the labels' own values in
their order. Declared classes without any image are left out. Labels of a class that the training split does not have are
refused, as missing ones are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, Target, held_out
from emoreg.data.readers.columns import (
    declared_names,
    image_column,
    is_label_type,
    label_column,
    label_column_or_none,
    pictures,
)
from emoreg.data.readers.shards import ParquetFiles, Shards, find_files, require_splits, stamp
from emoreg.errors import ImageSetError

_ROWS_AT_ONCE = 512


class Rows:
    """The images of shards, a batch of rows in memory at a time, with what belongs to each row; only those to ``keep``."""

    def __init__(self, shards: Shards, request: ImageSetRequest, targets: Sequence[Target]) -> None:
        """Keep all rows; ``targets`` has one for each."""
        for shard in shards:  # before any is decoded
            image_column(shard.physical_schema, request.image_column, shard.path)
        self.targets, self.groups = targets, _group_names(shards, request)
        self.keep: Bool[np.ndarray, " N"] = np.ones(len(targets), dtype=bool)
        self._shards, self._column = shards, request.image_column

    def __len__(self) -> int:
        return int(self.keep.sum())

    def __iter__(self) -> Iterator[Item]:
        row = 0
        for shard in self._shards:
            found = image_column(shard.physical_schema, self._column, shard.path)
            batches = shard.to_batches(columns=[found], batch_size=_ROWS_AT_ONCE)
            images = (image for batch in batches for image in pictures(batch.column(0)))
            for row_in_file, image in enumerate(images):
                if self.keep[row]:
                    name = f"{shard.path.rpartition('/')[2]} row {row_in_file}"
                    yield Item(image, self.targets[row], name, self.groups[row])
                row += 1


def column(shards: Shards, name: str) -> list[Any]:
    """All values of one column.

    Raises:
        ImageSetError: when a shard has no such column.
    """
    tables = (shard.to_table(columns=[label_column(shard.physical_schema, name, shard.path)]) for shard in shards)
    return [value for table in tables for value in table.column(0).to_pylist()]


def _group_names(shards: Shards, request: ImageSetRequest) -> list[str | None]:
    """The names of the groups of all rows, by the column that the request asks for; None for a row without one.

    Raises:
        ImageSetError: when a shard has no such column.
    """
    name = request.group
    if name is None:
        return [None] * _num_rows(shards)
    for shard in shards:
        if name not in shard.physical_schema.names:
            raise ImageSetError(
                f"Name a column as the image set's group (--group): there must be a column {name!r}, but {shard.path} has the "
                f"columns {', '.join(shard.physical_schema.names)}"
            )
    values = (value for shard in shards for value in shard.to_table(columns=[name]).column(0).to_pylist())
    return [None if value in (None, "") else str(value) for value in values]


def read(request: ImageSetRequest) -> ImageSetContents:
    """Images and one label column, which the target names; a single file is divided, each class in the same proportion."""
    files = find_files(request)
    if files is None:
        raise ImageSetError(
            "Give one Parquet file, or a folder with *train*.parquet and *test*.parquet (`emoreg data list` has the layout): "
            f"{request.path!r} holds no Parquet file of a training split"
        )
    return labelled(files, request, request.target)


def read_emoji(request: ImageSetRequest) -> ImageSetContents:
    """As ``read``, for emoji*.parquet; emoji without the label that is asked for (cats have no valence) are left out."""
    return labelled(require_splits(request, "emoji"), request, request.target, drop_unlabelled=True)


def labelled(files: ParquetFiles, request: ImageSetRequest, target: str, *, drop_unlabelled: bool = False) -> ImageSetContents:
    """The contents of files with one label column. Rows without a label are left out and counted, or refused later."""
    train = files.splits["train"]
    label = label_column(files.schema, target, train[0].path)
    raw = column(train, label)
    notes = Counter(files.notes)
    split, held = held_out_split(files, label, notes)
    _check_declared([*train, *held], label)
    raw_test = raw if split is None else column(held, label)
    names, values = _classes(files.schema, label, raw, raw_test, notes)
    index: dict[Any, int | None] = {value: position for position, value in enumerate(values)} | {None: None}
    rows = [
        Rows(shards, request, [index.get(value, -1) for value in some]) for shards, some in ((train, raw), (held, raw_test))
    ]
    if split is None:
        in_test = held_out([f"row {row}" for row in range(len(raw))], rows[0].targets, rows[0].groups)
        rows[0].keep, rows[1].keep = ~in_test, in_test
    if drop_unlabelled:
        num_rows = sum(map(len, rows))
        for part in rows:
            part.keep &= [target is not None for target in part.targets]
        notes[f"left out: no {label}"] = num_rows - sum(map(len, rows))
    return ImageSetContents(class_names=names, train=rows[0], test=rows[1], notes=notes, origins=files.origins(split))


def held_out_split(files: ParquetFiles, label: str, notes: Counter[str]) -> tuple[str | None, Shards]:
    """The labelled split that is the test split, "test" or else "validation", and its files.

    None and the training split's files where there is none: that is then to be divided. What is left out is counted.
    """
    chosen = None
    for split in ("test", "validation"):
        shards = files.splits.get(split, [])
        if not shards:
            continue
        if not _has_labels(shards, label):
            notes[f"left out: no labels in {split}"] = _num_rows(shards)
        elif chosen is None:
            chosen = split
        else:
            notes[f"left out: {split}"] = _num_rows(shards)
    return chosen, files.splits[chosen or "train"]


def _has_labels(shards: Shards, label: str) -> bool:
    if label_column_or_none(shards[0].physical_schema, label) is None:
        return False
    return any(map(_is_label, column(shards, label)))


def _is_label(value: Any) -> bool:
    """Whether a value is neither missing nor one of the usual signs of a missing one."""
    return value not in (None, "") and value == value and not (isinstance(value, int) and value < 0)  # NaN is not itself


def _num_rows(shards: Shards) -> int:
    return sum(shard.metadata.num_rows for shard in shards)


def _check_declared(shards: Shards, label: str) -> None:
    declared = {declared_names(shard.physical_schema, label) for shard in shards}
    if len(declared) > 1:
        raise ImageSetError(
            f"Keep one image set in a folder: its shards must declare the same class names, but {shards[0].path} and its "
            f"siblings declare {sorted(map(str, declared))}"
        )


def _classes(
    schema: pa.Schema, label: str, raw: list[Any], raw_test: list[Any], notes: Counter[str]
) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes, and the label values that stand for them in the same order. Unused ones are counted."""
    label_type = schema.field(label).type
    if pa.types.is_dictionary(label_type):
        label_type = label_type.value_type
    if not is_label_type(label_type):
        raise ImageSetError(
            f"Name another column as the image set's target: labels must be integers or strings, but column {label!r} is "
            f"{label_type}"
        )
    present = sorted({value for value in raw if value is not None})
    if not pa.types.is_integer(label_type):
        return tuple(map(str, present)), present
    declared = declared_names(schema, label)
    if declared is None:
        present = [value for value in present if value >= 0]
        return tuple(map(str, present)), present
    seen = {*raw, *raw_test}
    for unused in (name for value, name in enumerate(declared) if value not in seen):
        notes[f"left out: declared class without an image ({unused})"] += 1
    used = [value for value in range(len(declared)) if value in seen]
    return tuple(declared[value] for value in used), used


IMAGE_SETS.add(
    "emoji",
    Reader(
        kind="stimuli",
        description="emoji of several vendors, by Unicode subgroup or valence",
        source="yours",
        layout="a folder with emoji*train*.parquet and emoji*test*.parquet (image, label, valence)",
        licence="each vendor's",
        path="required",
        targets=("label", "valence"),
        has_columns=True,
        groups="a column",
        stamp=partial(stamp, pattern="emoji"),
        read=read_emoji,
    ),
)
IMAGE_SETS.add(
    "parquet",
    Reader(
        kind="either",
        description="your own images in Parquet",
        source="yours",
        layout="a folder with *train*.parquet and *test*.parquet (shards allowed, a snapshot of the Hugging Face hub too), or "
        "one file, which is divided 80/20; a column of images and one of labels (integers or strings)",
        licence="yours",
        path="required",
        targets=("label", "*"),
        has_columns=True,
        groups="a column",
        stamp=stamp,
        read=read,
    ),
)
