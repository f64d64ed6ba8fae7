"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): fetched by torchvision, unpacked by hand, or in Parquet. Official splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.layout import find_below
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader
from emoreg.data.readers import folder, parquet, shards
from emoreg.errors import ImageSetError

_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def stamp(request: ImageSetRequest, name: str) -> list[str]:
    """Name, size and time of change of every file that may be read, but the original's, which torchvision checks by MD5."""
    if request.path is None or _folder(request, name) is not None:
        return []
    return shards.stamp(request, _pattern(name)) or folder.stamp(request)


def read(request: ImageSetRequest, name: str) -> ImageSetContents:
    """The original, at the path or below it, Parquet, or a tree of class folders; without a path, fetched into the storage.

    Raises:
        ImageSetError: when the original is not there and cannot be fetched.
    """
    original = _folder(request, name)
    if request.path is not None and original is None:
        files = shards.find_splits(request, _pattern(name))
        return folder.read(request) if files is None else parquet.labelled(files, request, "label")
    root = request.downloads if original is None else original.parent
    train, test = (_original(name, root, train=train, download=original is None) for train in (True, False))
    return ImageSetContents(
        class_names=train.classes,
        train=_items(train, "train"),
        test=_items(test, "test"),
        origins=dict.fromkeys(("train", "test"), _FOLDERS[name]),
    )


def _pattern(name: str) -> str:
    return rf"{name}(?!\d)"


def _folder(request: ImageSetRequest, name: str) -> Path | None:
    return None if request.local is None else find_below(request.local, _FOLDERS[name])


def _original(name: str, root: Path, *, train: bool, download: bool) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, download=download)
    except (OSError, RuntimeError) as error:  # no network, or files that fail their MD5
        raise ImageSetError(
            f"Unpack {dataset.url} into {str(root)!r}, or give a path to {name} in Parquet: {str(root / _FOLDERS[name])!r} "
            f"must be whole, but it is not ({error})"
        ) from error


def _items(dataset: Any, split: str) -> list[Item]:
    rows = enumerate(zip(dataset.data, dataset.targets, strict=True))
    return [Item(pixels, target, f"{split} row {row}") for row, (pixels, target) in rows]


def _reader(name: str, title: str) -> Reader:
    return Reader(
        kind="task",
        description=f"{title}: 50,000 + 10,000 photographs, 32x32",
        source="fetched when absent; https://www.cs.toronto.edu/~kriz/cifar.html",
        layout=f"a folder with {_FOLDERS[name]}, its parent or its archive, {name}*train*.parquet and {name}*test*.parquet, or "
        "train/<class>/* and test/<class>/*",
        licence="none stated; cite Krizhevsky 2009",
        path="optional",
        targets=("label",),
        has_columns=True,
        groups="a column, in Parquet; levels of folders, in a tree",
        stamp=partial(stamp, name=name),
        read=partial(read, name=name),
    )


IMAGE_SETS.add("cifar10", _reader("cifar10", "CIFAR-10, ten classes"))
IMAGE_SETS.add("cifar100", _reader("cifar100", "CIFAR-100, a hundred classes"))
