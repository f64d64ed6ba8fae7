"""A tree of image files with a folder for each class: `<class>/*`, or `train/<class>/*` and `test/<class>/*`.

Class folders may hold further folders. Hidden files and folders, files that no image extension marks, and links to folders
below a class are passed over and counted. A validation folder is the test split where there is no test folder, and is left
alone where there is one. A tree without splits is divided: a fifth of each class is the test split, by a hash of the paths.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader
from emoreg.errors import ImageSetError

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .mpo .jp2 .j2k .avif".split()  # noqa: SIM905
)
"""File names that are taken for images; what they hold is decided when they are decoded."""

_TEST_NAMES = ("test", "validation", "valid", "val")


def stamp(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file that is read."""
    root = _root(request)
    lines = []
    for split in _splits(root).values():
        for files in _classes(split, Counter()).values():
            for file in files:
                status = file.stat() if file.exists() else file.lstat()
                lines.append(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}")
    return lines


def read(request: ImageSetRequest) -> ImageSetContents:
    """The files of each split in the order of their paths; classes in the order of their names."""
    root = _root(request)
    notes: Counter[str] = Counter()
    found = {split: _classes(folder, notes) for split, folder in _splits(root).items()}
    names = sorted(set().union(*found.values()))
    if not names:
        raise ImageSetError(f"Give a folder that holds a folder of images for each class: {str(root)!r} has none")
    items = {
        split: [
            Item(file, names.index(label), str(file.relative_to(root))) for label, files in classes.items() for file in files
        ]
        for split, classes in found.items()
    }
    return ImageSetContents(class_names=names, train=items["train"], test=items.get("test"), notes=notes)


def _root(request: ImageSetRequest) -> Path:
    if request.local is None:
        raise ImageSetError(f"Copy the image set to a local folder, or bring it into Parquet: its path is {request.path!r}")
    if not request.local.is_dir():
        raise ImageSetError(f"Give the folder above the classes: the path must be a folder, but {str(request.local)!r} is not")
    return request.local


def _splits(root: Path) -> dict[str, Path]:
    """The folders of class folders: of "train" and "test", or "train" alone for a tree that is to be divided."""
    if not (root / "train").is_dir():
        return {"train": root}
    test = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    return {"train": root / "train"} if test is None else {"train": root / "train", "test": test}


def _classes(split: Path, notes: Counter[str]) -> dict[str, list[Path]]:
    """The image files of each class, both sorted."""
    classes = {}
    for folder in sorted(split.iterdir()):
        if not folder.is_dir():
            continue
        if folder.name.startswith("."):
            notes["passed over: hidden folder"] += 1
        elif split.resolve().is_relative_to(folder.resolve()):
            notes["passed over: link to an enclosing folder"] += 1
        elif not folder.name.isprintable():
            raise ImageSetError(f"Rename the folder {folder.name!r}: a class must have a printable name")
        else:
            classes[folder.name] = sorted(_image_files(folder, notes))
    return classes


def _image_files(folder: Path, notes: Counter[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in list(folders):
            if name.startswith("."):
                folders.remove(name)
                notes["passed over: hidden folder"] += 1
            elif os.path.islink(os.path.join(parent, name)):  # os.walk lists it and does not enter it
                notes["passed over: link to a folder"] += 1
        for name in files:
            if name.startswith("."):
                notes["passed over: hidden file"] += 1
            elif os.path.splitext(name)[1].lower() not in EXTENSIONS:
                notes["passed over: not an image file"] += 1
            else:
                yield Path(parent, name)


IMAGE_SETS.add(
    "folder",
    Reader(
        kind="either",
        description="your own image files, a folder for each class",
        source="yours",
        layout="a folder with train/<class>/* and test/<class>/*, or with <class>/*, which is divided 80/20",
        licence="yours",
        path="required",
        targets=("class",),
        stamp=stamp,
        read=read,
    ),
)
