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

from emoreg.data.readers.contents import Contents, Item, Request, held_out
from emoreg.errors import ImageSetError

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".mpo",
        ".jp2",
        ".j2k",
        ".avif",
    ]
)
"""File names that are taken for images; what they hold is decided when they are decoded."""

_TEST_NAMES = ("test", "validation", "valid", "val")


def local(path: str | None) -> Path:
    """``path`` as a local path, with `~` expanded.

    Raises:
        ImageSetError: for a URI, which only Parquet can come from.
    """
    assert path is not None
    if "://" in path:
        raise ImageSetError(f"this image set must lie in a local folder, but its path is {path!r}: copy it, or use Parquet")
    return Path(path).expanduser()


def stamp(request: Request) -> list[str]:
    """Name, size and time of change of every file that is read."""
    root = local(request.path)
    lines = []
    for split in _splits(root).values():
        for files in _classes(split, Counter()).values():
            for file in files:
                status = file.lstat() if not file.exists() else file.stat()
                lines.append(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}")
    return lines


def read(request: Request) -> Contents:
    """The files of each split in the order of their paths; classes in the order of their names."""
    root = local(request.path)
    notes: Counter[str] = Counter()
    found = {name: _classes(split, notes) for name, split in _splits(root).items()}
    names = tuple(sorted(set().union(*found.values())))
    if not names:
        raise ImageSetError(f"a folder of images must hold a folder for each class, but {str(root)!r} has none: see the layout")
    listed = {
        split: [(file, names.index(label)) for label, files in classes.items() for file in files]
        for split, classes in found.items()
    }
    if "test" in listed:
        train, test = listed["train"], listed["test"]
    else:
        everything = listed["train"]
        in_test = held_out([str(file.relative_to(root)) for file, _ in everything], [label for _, label in everything])
        train = [one for one, held in zip(everything, in_test, strict=True) if not held]
        test = [one for one, held in zip(everything, in_test, strict=True) if held]

    def items(files: list[tuple[Path, int]]) -> Iterator[Item]:
        for file, label in files:
            name = str(file.relative_to(root))
            yield Item(name if name.isprintable() else ascii(name), file, label)

    return Contents(
        class_names=names,
        train=items(train),
        num_train=len(train),
        test=items(test),
        num_test=len(test),
        notes=notes,
    )


def _splits(root: Path) -> dict[str, Path]:
    """The folders of class folders: of "train" and "test", or "train" alone for a tree that is to be divided."""
    if not root.is_dir():
        raise ImageSetError(f"a folder of images must be a folder, but {str(root)!r} is not: give the folder above the classes")
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
            raise ImageSetError(f"a class must have a printable name, but a folder is called {folder.name!r}: rename it")
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
