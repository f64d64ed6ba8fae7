"""Images in Parquet: one file or a folder of shards, local or behind any URI that pyarrow.fs opens (s3://, gs://, hdfs://).

A row has an `image` (bytes of an encoded image, or Hugging Face's struct of `bytes` and `path`) and a label. Class names come
from the schema's metadata (`class_names`, a JSON list), from Hugging Face's `ClassLabel` feature, or from the labels' own
values in their order. Labels of a class that the training split does not have are refused, as missing ones are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from jaxtyping import Bool

from emoreg.data.readers.contents import Contents, Item, Request, held_out
from emoreg.errors import ImageSetError

_IMAGE_COLUMNS = ("image", "img")
_ROWS_AT_ONCE = 512

Target = int | tuple[float, ...] | None


class Shards:
    """The Parquet files of one split, in the order of their names, opened when they are read."""

    def __init__(self, filesystem: Any, infos: Sequence[Any]) -> None:
        self._filesystem = filesystem
        self._infos = sorted(infos, key=lambda info: info.path)
        self.name = self._infos[0].path

    def stamp(self) -> list[str]:
        """Name, size and time of change of each file."""
        return [f"{info.base_name} {info.size} {info.mtime_ns}" for info in self._infos]

    def schemas(self) -> list[Any]:
        """The Arrow schema of each shard, metadata included."""
        schemas = []
        for info in self._infos:
            with self._open(info) as file:
                schemas.append(file.schema_arrow)
        return schemas

    def column(self, name: str) -> list[Any]:
        """All values of one column, over all shards.

        Raises:
            ImageSetError: when a shard has no such column.
        """
        values: list[Any] = []
        for info in self._infos:
            with self._open(info) as file:
                _require_column(file.schema_arrow, (name,), info.path)
                values.extend(file.read(columns=[name]).column(0).to_pylist())
        return values

    def items(self, targets: Sequence[Target], keep: Bool[np.ndarray, " N"]) -> Iterator[Item]:
        """The rows' images, a batch of rows in memory at a time, with ``targets`` for all rows; only those to ``keep``."""
        row = 0
        for info in self._infos:
            with self._open(info) as file:
                column = _require_column(file.schema_arrow, _IMAGE_COLUMNS, info.path)
                row_in_file = 0
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                    for image in batch.column(0).to_pylist():
                        if keep[row]:
                            picture = image["bytes"] if isinstance(image, dict) else image
                            yield Item(f"{info.base_name} row {row_in_file}", picture, targets[row])
                        row += 1
                        row_in_file += 1

    def _open(self, info: Any) -> Any:
        try:
            return pq.ParquetFile(self._filesystem.open_input_file(info.path))
        except pa.ArrowInvalid as error:
            raise ImageSetError(
                f"an image set's Parquet files must be whole, but {info.path} cannot be read ({error}): fetch it again"
            ) from error


def _require_column(schema: Any, names: Sequence[str], path: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise ImageSetError(
        f"{path} must have a column {' or '.join(map(repr, names))}, but it has {schema.names}: rename the column, or name "
        "the label column as the image set's target"
    )


def find_shards(path: str, pattern: str = "") -> dict[str, Shards]:
    """The shards below ``path`` by split: "train" and "test", or "all" for files that name no split.

    Only files whose name begins with the regular expression ``pattern`` count, so that several sets can share a folder; or,
    where there are none, those whose name begins with their split. A validation file is the test split where there is no
    test file, and is left alone where there is one.
    """
    if "://" in path:
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
    else:
        filesystem, inner = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    info = filesystem.get_file_info(inner)
    if info.type == pyarrow.fs.FileType.File:
        return {"all": Shards(filesystem, [info])}
    if info.type == pyarrow.fs.FileType.NotFound:
        return {}
    infos = [
        info
        for info in filesystem.get_file_info(pyarrow.fs.FileSelector(inner))
        if info.type == pyarrow.fs.FileType.File and info.extension == "parquet" and not info.base_name.startswith((".", "_"))
    ]
    for accepted in (pattern, "train|test|val"):
        matching = [info for info in infos if re.match(accepted, info.base_name)]
        if matching:
            break
    splits: dict[str, list[Any]] = {}
    for info in matching:
        words = re.split(r"[^a-z]+", info.base_name.lower())
        split = next((split for split in ("train", "test", "validation", "valid", "val") if split in words), "all")
        splits.setdefault(split if split in ("train", "test", "all") else "validation", []).append(info)
    if "validation" in splits:
        rest = splits.pop("validation")
        splits.setdefault("test", rest)
    if "train" in splits:
        splits.pop("all", None)
    elif {"all", "test"} <= set(splits):
        splits["train"] = splits.pop("all")
    return {split: Shards(filesystem, group) for split, group in splits.items()}


def find_splits(path: str, pattern: str) -> dict[str, Shards]:
    """As ``find_shards``, but both splits or nothing."""
    shards = find_shards(path, pattern)
    return shards if {"train", "test"} <= set(shards) else {}


def require_splits(path: str, pattern: str) -> dict[str, Shards]:
    """As ``find_splits``.

    Raises:
        ImageSetError: when one is missing.
    """
    shards = find_splits(path, pattern)
    if not shards:
        raise ImageSetError(
            f"the path must hold {pattern}*train*.parquet and {pattern}*test*.parquet, but {path!r} does not: "
            "see `emoreg data list` for the layout"
        )
    return shards


def stamp_of(shards: dict[str, Shards]) -> list[str]:
    """Split, name, size and time of change of every file of ``shards``."""
    return [f"{split} {line}" for split, some in shards.items() for line in some.stamp()]


def stamp(request: Request) -> list[str]:
    """Split, name, size and time of change of every file that is read."""
    assert request.path is not None
    return stamp_of(find_shards(request.path))


def read(request: Request) -> Contents:
    """Images and one label column, which ``target`` names; a single file is divided, each class in the same proportion."""
    assert request.path is not None
    shards = find_shards(request.path)
    if not {"train", "all"} & set(shards):
        raise ImageSetError(
            "an image set in Parquet must be one file, or a folder with *train*.parquet and *test*.parquet, but "
            f"{request.path!r} holds {sorted(shards) or 'no Parquet file'}: see `emoreg data list` for the layout"
        )
    return labelled(shards, request.target)


def stamp_emoji(request: Request) -> list[str]:
    """As ``stamp``, for emoji*.parquet."""
    assert request.path is not None
    return stamp_of(require_splits(request.path, "emoji"))


def read_emoji(request: Request) -> Contents:
    """As ``read``, for emoji*.parquet; emoji without the label that is asked for (cats have no valence) are left out."""
    assert request.path is not None
    return labelled(require_splits(request.path, "emoji"), request.target, drop_unlabelled=True)


def labelled(shards: dict[str, Shards], column: str, *, drop_unlabelled: bool = False) -> Contents:
    """The contents of shards with one label column. Rows without a label are left out and counted, or refused later."""
    first = shards.get("train") or shards["all"]
    raw = first.column(column)
    names, values = _classes(first, column, raw)
    declared = {_declared_names(schema, column) for some in shards.values() for schema in some.schemas()}
    if len(declared) > 1:
        raise ImageSetError(
            f"all shards of an image set must declare the same class names, but those of {first.name} and its siblings declare "
            f"{sorted(map(str, declared))}: keep one set in a folder"
        )
    index = {value: position for position, value in enumerate(values)}
    targets = [index.get(value, -1) if value is not None else None for value in raw]
    if "train" in shards and "test" in shards:
        test, keep = shards["test"], np.ones(len(raw), dtype=bool)
        test_targets = [index.get(value, -1) if value is not None else None for value in test.column(column)]
        keep_test = np.ones(len(test_targets), dtype=bool)
    else:
        test, test_targets = first, targets
        keep_test = held_out([f"row {row}" for row in range(len(targets))], targets)
        keep = ~keep_test
    notes = {}
    if drop_unlabelled:
        known, known_test = (np.array([target is not None for target in some]) for some in (targets, test_targets))
        dropped = int((keep & ~known).sum() + (keep_test & ~known_test).sum())
        if dropped:
            notes[f"left out: no {column}"] = dropped
        keep, keep_test = keep & known, keep_test & known_test
    return Contents(
        class_names=names,
        train=first.items(targets, keep),
        num_train=int(keep.sum()),
        test=test.items(test_targets, keep_test),
        num_test=int(keep_test.sum()),
        notes=notes,
    )


def _classes(shards: Shards, column: str, raw: list[Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes, and the label values that stand for them in the same order."""
    schema = shards.schemas()[0]
    label_type = schema.field(column).type
    if pa.types.is_dictionary(label_type):
        label_type = label_type.value_type
    present = sorted({value for value in raw if value is not None})
    if pa.types.is_integer(label_type):
        declared = _declared_names(schema, column)
        if declared is not None:
            return declared, list(range(len(declared)))
        present = [value for value in present if value >= 0]
    elif not (pa.types.is_string(label_type) or pa.types.is_large_string(label_type) or pa.types.is_boolean(label_type)):
        raise ImageSetError(
            f"labels must be integers or strings, but column {column!r} of {shards.name} is {label_type}: name another column "
            "as the image set's target"
        )
    return tuple(map(str, present)), present


def _declared_names(schema: Any, column: str) -> tuple[str, ...] | None:
    metadata = schema.metadata or {}
    if column == "label" and b"class_names" in metadata:
        return tuple(json.loads(metadata[b"class_names"]))
    if b"huggingface" in metadata:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"].get(column, {})
        return tuple(feature["names"]) if "names" in feature else None
    return None
