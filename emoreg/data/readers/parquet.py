"""Images in Parquet: one file or a folder of shards, local or behind any URI that pyarrow.fs opens (s3://, gs://, hdfs://).

A row has an `image` (bytes of an encoded image, or Hugging Face's struct of `bytes` and `path`) and a label. Class names come
from the schema's metadata (`class_names`, a JSON list), from Hugging Face's `ClassLabel` feature, or from the labels' own
values in their order. Labels of a class that the training split does not have are refused, as missing ones are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
from jaxtyping import Bool

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, Target, files, held_out
from emoreg.errors import ImageSetError

SPLIT_FILES = ("train*", "test*", "val*")
"""Names of files that say their split and not their set, as shell patterns: read where no name says the set."""

_IMAGE_COLUMNS = ("image", "img")
_ROWS_AT_ONCE = 512

Shards = list[Any]
"""The Parquet files of one split, in the order of their names: pyarrow's fragments, which are opened when they are read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The images of shards, a batch of rows in memory at a time, with a target for each row; only those to ``keep``."""

    shards: Shards
    targets: Sequence[Target]
    keep: Bool[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.targets) if self.keep is None else int(self.keep.sum())

    def __iter__(self) -> Iterator[Item]:
        row = 0
        for shard in self.shards:
            name = _require_column(shard, _IMAGE_COLUMNS)
            batches = shard.to_batches(columns=[name], batch_size=_ROWS_AT_ONCE)
            images = (image for batch in batches for image in batch.column(0).to_pylist())
            for row_in_file, image in enumerate(images):
                if self.keep is None or self.keep[row]:
                    picture = image["bytes"] if isinstance(image, dict) else image
                    yield Item(picture, self.targets[row], f"{shard.path.rpartition('/')[2]} row {row_in_file}")
                row += 1


def column(shards: Shards, name: str) -> list[Any]:
    """All values of one column.

    Raises:
        ImageSetError: when a shard has no such column.
    """
    tables = (shard.to_table(columns=[_require_column(shard, (name,))]) for shard in shards)
    return [value for table in tables for value in table.column(0).to_pylist()]


def _require_column(shard: Any, names: Sequence[str]) -> str:
    present = shard.physical_schema.names
    for name in names:
        if name in present:
            return name
    raise ImageSetError(
        f"Rename a column of {shard.path}, or name the label column as the image set's target: there must be a column "
        f"{' or '.join(map(repr, names))}, but it has {present}"
    )


def find_shards(request: ImageSetRequest, pattern: str = "") -> dict[str, Shards]:
    """The shards at the request's path by split: "train" and "test", or "all" for files that name no split.

    Only files whose name begins with the regular expression ``pattern`` count, so that several sets can share a folder; or,
    where there are none, those whose name begins with their split. A validation file is the test split where there is no
    test file, and is left alone where there is one.
    """
    filesystem, root = request.open()
    as_shard = partial(pyarrow.dataset.ParquetFileFormat().make_fragment, filesystem=filesystem)
    info = filesystem.get_file_info(root)
    if info.is_file:
        return {"all": [as_shard(root)]}
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    infos = [info for info in infos if info.is_file and info.extension == "parquet" and info.base_name[0] not in "._"]
    for accepted in (pattern, "train|test|val"):
        matching = [info for info in infos if re.match(accepted, info.base_name)]
        if matching:
            break
    splits: dict[str, Shards] = {}
    for info in sorted(matching, key=lambda info: info.path):
        words = re.split(r"[^a-z]+", info.base_name.lower())
        split = next((split for split in ("train", "test", "validation", "valid", "val") if split in words), "all")
        splits.setdefault("validation" if split.startswith("val") else split, []).append(as_shard(info.path))
    if "validation" in splits:
        rest = splits.pop("validation")
        splits.setdefault("test", rest)
    if "train" in splits:
        splits.pop("all", None)
    elif {"all", "test"} <= set(splits):
        splits["train"] = splits.pop("all")
    return splits


def find_splits(request: ImageSetRequest, pattern: str, *, required: bool = False) -> dict[str, Shards]:
    """As ``find_shards``, but both splits or nothing.

    Raises:
        ImageSetError: when one is missing that is ``required``.
    """
    shards = find_shards(request, pattern)
    if {"train", "test"} <= set(shards):
        return shards
    if required:
        raise ImageSetError(
            f"Give a path with {pattern}*train*.parquet and {pattern}*test*.parquet (`emoreg data list` has the layout): "
            f"{request.path!r} does not hold them"
        )
    return {}


def read(request: ImageSetRequest) -> ImageSetContents:
    """Images and one label column, which the target names; a single file is divided, each class in the same proportion."""
    shards = find_shards(request)
    if not {"train", "all"} & set(shards):
        raise ImageSetError(
            "Give one Parquet file, or a folder with *train*.parquet and *test*.parquet (`emoreg data list` has the layout): "
            f"{request.path!r} holds {sorted(shards) or 'no Parquet file'}"
        )
    return labelled(shards, request.target)


def read_emoji(request: ImageSetRequest) -> ImageSetContents:
    """As ``read``, for emoji*.parquet; emoji without the label that is asked for (cats have no valence) are left out."""
    return labelled(find_splits(request, "emoji", required=True), request.target, drop_unlabelled=True)


def labelled(shards: dict[str, Shards], label: str, *, drop_unlabelled: bool = False) -> ImageSetContents:
    """The contents of shards with one label column. Rows without a label are left out and counted, or refused later."""
    first = shards.get("train") or shards["all"]
    raw = column(first, label)
    names, values = _classes(first[0].physical_schema, label, raw)
    declared = {_declared_names(shard.physical_schema, label) for some in shards.values() for shard in some}
    if len(declared) > 1:
        raise ImageSetError(
            f"Keep one image set in a folder: its shards must declare the same class names, but {first[0].path} and its "
            f"siblings declare {sorted(map(str, declared))}"
        )
    index: dict[Any, int | None] = {value: position for position, value in enumerate(values)} | {None: None}
    targets = [index.get(value, -1) for value in raw]
    if "test" in shards:
        parts = [(first, targets), (shards["test"], [index.get(value, -1) for value in column(shards["test"], label)])]
        kept = [np.ones(len(some), dtype=bool) for _, some in parts]
    else:
        parts = [(first, targets)] * 2
        in_test = held_out([f"row {row}" for row in range(len(targets))], targets)
        kept = [~in_test, in_test]
    notes = {}
    if drop_unlabelled:
        known = [keep & [target is not None for target in some] for keep, (_, some) in zip(kept, parts, strict=True)]
        notes[f"left out: no {label}"] = int(sum(map(np.sum, kept)) - sum(map(np.sum, known)))
        kept = known
    train, test = (Rows(some, of, keep) for (some, of), keep in zip(parts, kept, strict=True))
    return ImageSetContents(class_names=names, train=train, test=test, notes=notes)


def _classes(schema: Any, label: str, raw: list[Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes, and the label values that stand for them in the same order."""
    label_type = schema.field(label).type
    if pa.types.is_dictionary(label_type):
        label_type = label_type.value_type
    present = sorted({value for value in raw if value is not None})
    if pa.types.is_integer(label_type):
        declared = _declared_names(schema, label)
        if declared is not None:
            return declared, list(range(len(declared)))
        present = [value for value in present if value >= 0]
    elif not (pa.types.is_string(label_type) or pa.types.is_large_string(label_type) or pa.types.is_boolean(label_type)):
        raise ImageSetError(
            f"Name another column as the image set's target: labels must be integers or strings, but column {label!r} is "
            f"{label_type}"
        )
    return tuple(map(str, present)), present


def _declared_names(schema: Any, label: str) -> tuple[str, ...] | None:
    metadata = schema.metadata or {}
    if label == "label" and b"class_names" in metadata:
        return tuple(json.loads(metadata[b"class_names"]))
    if b"huggingface" in metadata:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"].get(label, {})
        return tuple(feature["names"]) if "names" in feature else None
    return None


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
        stamp=files("emoji*", *SPLIT_FILES),
        read=read_emoji,
    ),
)
IMAGE_SETS.add(
    "parquet",
    Reader(
        kind="either",
        description="your own images in Parquet",
        source="yours",
        layout="a folder with *train*.parquet and *test*.parquet (shards allowed), or one file, which is divided 80/20; "
        "columns image (bytes, or Hugging Face's struct) and label (integer or string)",
        licence="yours",
        path="required",
        targets=("label", "*"),
        stamp=files("*.parquet"),
        read=read,
    ),
)
