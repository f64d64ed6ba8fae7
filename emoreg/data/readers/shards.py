"""The Parquet files of an image set: one file or a folder of shards, local or behind any URI that pyarrow.fs opens.

Files tell their split by their name or their folder's, by the names that the Hugging Face hub knows (`emoreg.data.layout`), so
that a snapshot of the hub can be read as it lies there: `data/train-00000-of-00002.parquet`, `default/train/0000.parquet`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from emoreg.data.layout import (
    POINTER_CURE,
    begins_with_split,
    check_shards,
    fail,
    is_pointer,
    rubbish,
    set_of,
    split_of,
)
from emoreg.data.reader import ImageSetRequest
from emoreg.errors import ImageSetError

_DEPTH = 4
"""How far below the path files are looked for."""
_POINTER_BYTES = 1024

Shards = list[Any]
"""The Parquet files of one split, in the order of their names: pyarrow's fragments, which are opened when they are read."""


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """The Parquet files of an image set at ``root``: "train", and perhaps "test" and "validation"; and what was passed over."""

    root: str
    splits: dict[str, Shards]
    notes: Counter[str]

    @property
    def schema(self) -> pa.Schema:
        """Of the first file of the training split."""
        return self.splits["train"][0].physical_schema

    def origins(self, test: str | None) -> dict[str, str]:
        """The files of the training split, and of the one that is the test split, in words."""
        found = {}
        for split, source in (("train", "train"), ("test", test)):
            if source is not None:
                first, *others = (_relative(shard.path, self.root) for shard in self.splits[source])
                found[split] = first + (f" and {len(others)} more" if others else "")
        return found


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
    splits = {split: [as_shard(info.path) for info in some.values()] for split, some in by_split.items()}
    return ParquetFiles(root, splits, notes)


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
    for accepts in (re.compile(pattern, re.IGNORECASE).match, begins_with_split):
        for depth in (1, _DEPTH):
            infos = _below(filesystem, root, depth)
            matching = [info for info in infos if any(map(accepts, _relative(info.path, root).split("/")))]
            if matching:
                return _of_one_folder(matching, root)
    return []


def _relative(path: str, root: str) -> str:
    """A file's path below the root; its name, where it is the root itself."""
    return path.removeprefix(root).removeprefix("/") or path.rpartition("/")[2]


def _below(filesystem: Any, root: str, depth: int) -> list[Any]:
    """The Parquet files up to ``depth`` levels below a folder that are neither hidden nor in a folder that is passed over."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):  # not by a selector, which follows links, in circles too
        found = []
        for parent, folders, files in os.walk(root, onerror=fail) if os.path.isdir(root) else ():
            is_last = len(Path(parent).relative_to(root).parts) + 1 == depth
            folders[:] = [] if is_last else [name for name in folders if rubbish(name) is None]
            found += [os.path.join(parent, name) for name in files]
    else:
        infos = filesystem.get_file_info(pyarrow.fs.FileSelector(root, recursive=depth > 1, allow_not_found=True))
        found = [info.path for info in infos if info.is_file]
    parts = ((path, *_relative(path, root).split("/")) for path in found if path.lower().endswith(".parquet"))
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


def find_splits(request: ImageSetRequest, pattern: str) -> ParquetFiles | None:
    """As ``find_files``, but both training and test or validation split, or None."""
    files = find_files(request, pattern)
    return files if files is not None and len(files.splits) > 1 else None


def require_splits(request: ImageSetRequest, pattern: str) -> ParquetFiles:
    """As ``find_splits``.

    Raises:
        ImageSetError: when a split is missing.
    """
    files = find_splits(request, pattern)
    if files is None:
        raise ImageSetError(
            f"Give a path with {pattern}*train*.parquet and {pattern}*test*.parquet (`emoreg data list` has the layout): "
            f"{request.path!r} does not hold them"
        )
    return files
