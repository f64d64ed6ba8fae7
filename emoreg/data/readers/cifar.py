"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): fetched by torchvision, unpacked by hand, or in Parquet. Official splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, files
from emoreg.data.readers import parquet
from emoreg.errors import ImageSetError

_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_LABEL_COLUMNS = ("label", "fine_label")


def read(request: ImageSetRequest, name: str) -> ImageSetContents:
    """From Parquet where the path has it, else the original: below the path, or fetched into the storage.

    Raises:
        ImageSetError: when the original is not there and cannot be fetched.
    """
    is_original = request.local is not None and (request.local / _FOLDERS[name]).is_dir()
    if request.path is not None and not is_original:
        shards = parquet.find_splits(request, rf"{name}(?!\d)")
        if shards:
            columns = shards["train"][0].physical_schema.names
            label = next((column for column in _LABEL_COLUMNS if column in columns), _LABEL_COLUMNS[0])
            return parquet.labelled(shards, label)
    root = request.local or request.downloads
    train, test = (_original(name, root, train=train) for train in (True, False))
    return ImageSetContents(class_names=train.classes, train=_items(train, "train"), test=_items(test, "test"))


def _original(name: str, root: Path, *, train: bool) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # no network, or a download that fails its MD5
        raise ImageSetError(
            f"Unpack {dataset.url} into {str(root)!r}, or give a path to {name} in Parquet: {str(root / _FOLDERS[name])!r} is "
            f"not whole, and it could not be fetched ({error})"
        ) from error


def _items(dataset: Any, split: str) -> list[Item]:
    rows = enumerate(zip(dataset.data, dataset.targets, strict=True))
    return [Item(pixels, target, f"{split} row {row}") for row, (pixels, target) in rows]


def _reader(name: str, title: str) -> Reader:
    return Reader(
        kind="task",
        description=f"{title}: 50,000 + 10,000 photographs, 32x32",
        source="fetched when absent; https://www.cs.toronto.edu/~kriz/cifar.html",
        layout=f"a folder with {_FOLDERS[name]}, or {name}*train*.parquet and {name}*test*.parquet",
        licence="none stated; cite Krizhevsky 2009",
        path="optional",
        targets=("label",),
        stamp=files(f"{name}[!0-9]*", *parquet.SPLIT_FILES),  # not of the original, which torchvision checks by its MD5
        read=partial(read, name=name),
    )


IMAGE_SETS.add("cifar10", _reader("cifar10", "CIFAR-10, ten classes"))
IMAGE_SETS.add("cifar100", _reader("cifar100", "CIFAR-100, a hundred classes"))
