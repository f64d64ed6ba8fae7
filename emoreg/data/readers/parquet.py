"""Images in Parquet: one file or a folder of shards, local or behind any URI that pyarrow.fs opens (s3://, gs://, hdfs://).

Files tell their split by their name or their folder's, by the names that the Hugging Face hub knows (`emoreg.data.layout`), so
that a snapshot of the hub can be read as it lies there: `data/train-00000-of-00002.parquet`, `default/train/0000.parquet`.

A row has an image and a label (`emoreg.data.readers.columns`). Class names come from the schema's metadata (`class_names`, a
JSON list), from Hugging Face's `ClassLabel` feature, or from the labels' own values in their order. Declared classes without
any image are left out. Labels of a class that the training split does not have are refused, as missing ones are.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
from jaxtyping import Bool

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.layout import POINTER_CURE, begins_with_split, check_shards, fail, is_pointer, rubbish, set_of, split_of
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, Target, held_out
from emoreg.data.readers.columns import (
    declared_names,
    image_column,
    is_label_type,
    label_column,
    label_column_or_none,
    pictures,
)
from emoreg.errors import ImageSetError

_ROWS_AT_ONCE = 512
_DEPTH = 4
"""How far below the path files are looked for."""
_POINTER_BYTES = 1024

Shards = list[Any]
"""The Parquet files of one split, in the order of their names: pyarrow's fragments, which are opened when they are read."""


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """The Parquet files of an image set: "train", and perhaps "test" and "validation"; and what was passed over."""

    splits: dict[str, Shards]
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def schema(self) -> pa.Schema:
        """Of the first file of the training split."""
        return self.splits["train"][0].physical_schema


@dataclass(frozen=True, slots=True)
class Rows:
    """The images of shards, a batch of rows in memory at a time, with a target for each row; only those to ``keep``."""

    shards: Shards
    column: str | None
    targets: Sequence[Target]
    keep: Bool[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.targets) if self.keep is None else int(self.keep.sum())

    def __iter__(self) -> Iterator[Item]:
        row = 0
        for shard in self.shards:
            name = image_column(shard.physical_schema, self.column, shard.path)
            batches = shard.to_batches(columns=[name], batch_size=_ROWS_AT_ONCE)
            images = (image for batch in batches for image in pictures(batch.column(0)))
            for row_in_file, image in enumerate(images):
                if self.keep is None or self.keep[row]:
                    yield Item(image, self.targets[row], f"{shard.path.rpartition('/')[2]} row {row_in_file}")
                row += 1


def column(shards: Shards, name: str) -> list[Any]:
    """All values of one column.

    Raises:
        ImageSetError: when a shard has no such column.
    """
    tables = (shard.to_table(columns=[label_column(shard.physical_schema, name, shard.path)]) for shard in shards)
    return [value for table in tables for value in table.column(0).to_pylist()]


def find_files(request: ImageSetRequest, pattern: str = "") -> ParquetFiles | None:
    """The Parquet files at the request's path; None where there are none, or none of a training split.

    Only files whose name, or whose folder's, begins with the regular expression ``pattern`` count, so that several sets can
    share a folder; or, where there are none, those whose name begins with their split. Files that name no split (one, or the
    shards of one) are the training split where there is no other.

    Raises:
        ImageSetError: for files of which some are missing, or that make no one set.
    """
    filesystem, root = request.open()
    infos = _matching(filesystem, root, pattern)
    named = {_relative(info.path, root): info for info in sorted(infos, key=lambda info: info.path)}
    check_shards(named)
    by_split: dict[str, dict[str, Any]] = {}
    for name, info in named.items():
        split = "train" if info.path == root else _split(name)
        by_split.setdefault(split or "", {})[name] = info
    notes: Counter[str] = Counter()
    if "" in by_split:
        unnamed = by_split.pop("")
        if "train" not in by_split:
            _check_one(list(unnamed), root)
            by_split["train"] = unnamed
        else:
            notes["passed over: Parquet file that names no split"] = len(unnamed)
    if "train" not in by_split:
        return None
    _check_one_set(name for some in by_split.values() for name in some)
    for info in (info for some in by_split.values() for info in some.values()):
        _check_content(filesystem, info)
    as_shard = partial(pyarrow.dataset.ParquetFileFormat().make_fragment, filesystem=filesystem)
    return ParquetFiles({split: [as_shard(info.path) for info in some.values()] for split, some in by_split.items()}, notes)


def stamp(request: ImageSetRequest, pattern: str = "") -> list[str]:
    """Name, size and time of change of every Parquet file that may be read."""
    filesystem, root = request.open()
    infos = _matching(filesystem, root, pattern)
    return sorted(f"{info.path.removeprefix(root)} {info.size} {info.mtime_ns}" for info in infos)


def _matching(filesystem: Any, root: str, pattern: str) -> list[Any]:
    """The Parquet files at a path, or the nearest below it that one folder holds."""
    info = filesystem.get_file_info(root)
    if info.is_file:
        return [info]
    for depth in (1, _DEPTH):
        infos = [info for info in _below(filesystem, root, depth) if info.extension.lower() == "parquet"]
        for accepts in (partial(_begins, pattern), begins_with_split):
            matching = [info for info in infos if any(map(accepts, _relative(info.path, root).split("/")))]
            if matching:
                return _of_one_folder(matching, root)
    return []


def _relative(path: str, root: str) -> str:
    """A file's path below the root; its name, where it is the root itself."""
    return path.removeprefix(root).removeprefix("/") or path.rpartition("/")[2]


def _begins(pattern: str, name: str) -> bool:
    return re.match(pattern, name, re.IGNORECASE) is not None


def _below(filesystem: Any, root: str, depth: int) -> list[Any]:
    """The files up to ``depth`` levels below a folder that are neither hidden nor in a folder that is passed over."""
    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        infos = filesystem.get_file_info(pyarrow.fs.FileSelector(root, recursive=depth > 1, allow_not_found=True))
        found = [info.path for info in infos if info.is_file]
    else:  # not by a selector, which follows links, in circles too
        found = []
        for parent, folders, files in os.walk(root, onerror=fail):
            is_last = os.path.relpath(parent, root).count(os.sep) + 2 > depth
            folders[:] = [] if is_last else [name for name in folders if rubbish(name) is None]
            found += [os.path.join(parent, name) for name in files]
    parts = ((path, *_relative(path, root).split("/")) for path in found)
    kept = [path for path, *above, base in parts if not any(map(rubbish, above)) and base[0] not in "._"]
    return list(filesystem.get_file_info(kept)) if kept else []


def _split(name: str) -> str | None:
    """The split of a file, by its own name or by the nearest of its folders that tells one."""
    return next((split for part in reversed(name.split("/")) if (split := split_of(part)) is not None), None)


def _of_one_folder(infos: list[Any], root: str) -> list[Any]:
    """The files of the one folder that has some, folders of splits aside.

    Raises:
        ImageSetError: where several have: configurations of a set, or sets.
    """
    folders: dict[str, list[Any]] = {}
    for info in infos:
        parts = _relative(info.path, root).split("/")[:-1]
        folders.setdefault("/".join(part for part in parts if split_of(part) is None), []).append(info)
    if len(folders) > 1 and "" not in folders:
        raise ImageSetError(
            f"Give the path of one of the folders {sorted(folders)} of {root!r}: an image set must lie in one folder, but each "
            "of these holds Parquet files"
        )
    return folders.get("", next(iter(folders.values())))


def _check_one(names: list[str], root: str) -> None:
    """Refuse several files that name no split: they may be splits."""
    stems = {re.sub(r"\d+-of-\d+.*", "", name) for name in names}
    if len(names) > 1 and (len(stems) > 1 or "-of-" not in names[0]):
        raise ImageSetError(
            "Name the splits train and test (or training, dev, eval, ...), give one file, or put what belongs together into a "
            f"folder train: no word of {names[:4]} in {root!r} tells a split"
        )


def _check_one_set(names: Iterable[str]) -> None:
    """Refuse files whose names tell their splits and are otherwise those of several sets."""
    sets: dict[str, str] = {}
    for name in (name for name in names if split_of(name.rpartition("/")[2]) is not None):
        sets.setdefault(set_of(name.rpartition("/")[2]), name)
    if len(sets) > 1:
        raise ImageSetError(
            "Keep one image set in a folder, or put what belongs together into folders train and test: beside their splits, "
            f"{sorted(sets.values())[:4]} have other names"
        )


def _check_content(filesystem: Any, info: Any) -> None:
    if info.size < _POINTER_BYTES:
        with filesystem.open_input_file(info.path) as stream:
            if is_pointer(stream.read()):
                raise ImageSetError(f"Fetch the files themselves ({POINTER_CURE}): {info.path} is a pointer of git-lfs")


def find_splits(request: ImageSetRequest, pattern: str, *, required: bool = False) -> ParquetFiles | None:
    """As ``find_files``, but both training and test or validation split, or None.

    Raises:
        ImageSetError: when one is missing that is ``required``.
    """
    files = find_files(request, pattern)
    if files is not None and len(files.splits) > 1:
        return files
    if required:
        raise ImageSetError(
            f"Give a path with {pattern}*train*.parquet and {pattern}*test*.parquet (`emoreg data list` has the layout): "
            f"{request.path!r} does not hold them"
        )
    return None


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
    files = find_splits(request, "emoji", required=True)
    assert files is not None
    return labelled(files, request, request.target, drop_unlabelled=True)


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
    targets, test_targets = ([index.get(value, -1) for value in some] for some in (raw, raw_test))
    if split is None:
        in_test = held_out([f"row {row}" for row in range(len(targets))], targets)
        kept = [~in_test, in_test]
    else:
        kept = [np.ones(len(some), dtype=bool) for some in (targets, test_targets)]
    if drop_unlabelled:
        pairs = zip(kept, (targets, test_targets), strict=True)
        known = [keep & [target is not None for target in some] for keep, some in pairs]
        notes[f"left out: no {label}"] = int(sum(map(np.sum, kept)) - sum(map(np.sum, known)))
        kept = known
    parts = zip((train, held), (targets, test_targets), kept, strict=True)
    rows = [Rows(shards, request.image_column, some, keep) for shards, some, keep in parts]
    return ImageSetContents(
        class_names=names, train=rows[0], test=rows[1], notes=notes, origins=origins(files, split, request.open()[1])
    )


def held_out_split(files: ParquetFiles, label: str, notes: Counter[str]) -> tuple[str | None, Shards]:
    """The labelled split that is the test split, "test" or else "validation", and its files; None and the training split's
    where there is none, which is then to be divided. What is left out is counted."""
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


def origins(files: ParquetFiles, test: str | None, root: str) -> dict[str, str]:
    """The files of the training and the test split, in words."""
    found = {}
    for split, source in (("train", "train"), ("test", test)):
        if source is not None:
            first, *others = (_relative(shard.path, root) for shard in files.splits[source])
            found[split] = first + (f" and {len(others)} more" if others else "")
    return found


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
        stamp=stamp,
        read=read,
    ),
)
