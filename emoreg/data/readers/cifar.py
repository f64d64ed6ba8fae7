"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): fetched by torchvision, unpacked by hand, or in Parquet. Official splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from emoreg.data import torchvision_operators
from emoreg.data.readers import parquet
from emoreg.data.readers.contents import Contents, Item, Request
from emoreg.errors import ImageSetError

_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_LABEL_COLUMNS = ("label", "fine_label")


def stamp(request: Request, name: str) -> list[str]:
    """The files' stamps for Parquet; torchvision checks the original by its MD5, so that its name says it all."""
    shards = _shards(request, name)
    return parquet.stamp_of(shards) if shards else ["original"]


def read(request: Request, name: str) -> Contents:
    """From Parquet where `path` has it, else the original: below `path`, or fetched into the storage.

    Raises:
        ImageSetError: when the original is not there and cannot be fetched.
    """
    shards = _shards(request, name)
    if shards:
        columns = shards["train"].schemas()[0].names
        return parquet.labelled(shards, next((column for column in _LABEL_COLUMNS if column in columns), _LABEL_COLUMNS[0]))
    root = Path(request.path).expanduser() if request.path is not None else request.downloads
    train, test = (_original(name, root, train=train) for train in (True, False))
    return Contents(
        class_names=tuple(train.classes),
        train=_items(train, "train"),
        num_train=len(train),
        test=_items(test, "test"),
        num_test=len(test),
    )


def _shards(request: Request, name: str) -> dict[str, parquet.Shards]:
    if request.path is None or (Path(request.path).expanduser() / _FOLDERS[name]).is_dir():
        return {}
    return parquet.find_splits(request.path, rf"{name}(?!\d)")


def _original(name: str, root: Path, *, train: bool) -> Any:
    torchvision_operators.ensure()
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # no network, or a download that fails its MD5
        raise ImageSetError(
            f"{name} must be on disk or within reach, but {str(root / _FOLDERS[name])!r} is not whole and it could not be "
            f"fetched ({error}): unpack {dataset.url} into {str(root)!r}, or give a path to it in Parquet"
        ) from error


def _items(dataset: Any, split: str) -> Iterator[Item]:
    for row, (pixels, label) in enumerate(zip(dataset.data, dataset.targets, strict=True)):
        yield Item(f"{split} row {row}", Image.fromarray(pixels), int(label))
