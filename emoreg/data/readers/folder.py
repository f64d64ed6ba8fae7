"""A tree of image files with a folder for each class: `<class>/*`, or `train/<class>/*` and `test/<class>/*`.

Splits go by the names that the Hugging Face hub knows (`emoreg.data.layout`), and a folder that holds nothing but one other
folder is a wrapper of it. Class folders may hold further folders. What systems leave behind, hidden files and folders, files
that no image extension marks, and links to folders below a class are passed over and counted. A validation folder is the test
split where there is no labelled test folder, and is left alone where there is one. A tree without a test split is divided: a
fifth of each class is the test split, by a hash of the paths.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.layout import SplitName, entries, fail, is_split_word, rubbish, split_of, stamp_of
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader
from emoreg.errors import ImageSetError

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "mpo"),
        *("jp2", "j2k", "avif", "heic", "heif", "jxl", "dng"),
    )
)
"""File names that are taken for images; whether what they hold can be read is decided when they are decoded."""

_LOOSE = "passed over: image in no class folder"
_IN_COMMON = 2
"""Folders of the first level that have this many inner folders in common are splits, or folds, rather than classes."""


def stamp(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file that is read."""
    root, unheard = _root(request), Counter[str]()
    classes = [_classes(split, unheard) for split in _splits(root, unheard).values()]
    return stamp_of((file for some in classes for files in some.values() for file in files), root)


def read(request: ImageSetRequest) -> ImageSetContents:
    """The files of each split in the order of their paths; classes in the order of their names."""
    root = _root(request)
    notes: Counter[str] = Counter()
    splits = _splits(root, notes)
    found = {split: _classes(folder, notes) for split, folder in splits.items()}
    names = sorted(set().union(*found.values()))
    if not names:
        raise ImageSetError(f"Give a folder that holds a folder of images for each class: {str(root)!r} has none")
    items: dict[str, list[Item]] = {
        split: [
            Item(file, names.index(label), str(file.relative_to(root))) for label, files in classes.items() for file in files
        ]
        for split, classes in found.items()
    }
    return ImageSetContents(
        class_names=names,
        train=items["train"],
        test=items.get("test"),
        notes=notes,
        origins={split: _place(folder, root) for split, folder in splits.items()},
    )


def _place(folder: Path, root: Path) -> str:
    return "the path itself" if folder == root else str(folder.relative_to(root))


def _root(request: ImageSetRequest) -> Path:
    if request.local is None:
        raise ImageSetError(f"Copy the image set to a local folder, or bring it into Parquet: its path is {request.path!r}")
    if not request.local.is_dir():
        raise ImageSetError(f"Give the folder above the classes: the path must be a folder, but {str(request.local)!r} is not")
    return request.local


def _splits(root: Path, notes: Counter[str]) -> dict[str, Path]:
    """The folders of class folders: of "train" and "test", or "train" alone for a tree that is to be divided."""
    top = _unwrapped(root, notes)
    beside = Counter[str]()
    folders = _folders(top, beside)
    named: dict[SplitName, list[Path]] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split is not None:
            named.setdefault(split, []).append(folder)
    others = [folder.name for folder in folders if split_of(folder.name) is None]
    if not _are_splits(named, others):
        _refuse_hidden_splits(top, folders, named)
        return {"train": top}
    for split, some in named.items():
        if len(some) > 1:
            raise ImageSetError(
                f"Keep one folder for each split: {[folder.name for folder in some]} of {str(top)!r} all say {split}"
            )
    notes.update(beside)
    notes.update(f"passed over: folder beside the splits ({name})" for name in others)
    return _chosen({split: _unwrapped(some[0], notes, in_split=True) for split, some in named.items()}, notes)


def _are_splits(named: dict[SplitName, list[Path]], others: list[str]) -> bool:
    """Whether folders are splits, which hold class folders, and not classes of such names, which hold images."""
    train = named.get("train", [])
    if not any(_has_folders(folder) for folder in train):
        return False
    return len(named) > 1 or not others or all(is_split_word(folder.name) for folder in train)


def _refuse_hidden_splits(top: Path, folders: list[Path], named: dict[SplitName, list[Path]]) -> None:
    """Refuse what would be learned as classes and is none: splits without class folders, and splits of unknown names."""
    suspects = [folder for some in named.values() for folder in some]
    alone = len(named) > 1 or len(suspects) == len(folders)
    if suspects and (alone or any(is_split_word(folder.name) and _has_folders(folder) for folder in suspects)):
        raise ImageSetError(
            "Give train/<class>/* and test/<class>/*, or rename what are classes: "
            f"{sorted(folder.name for folder in suspects)} of {str(top)!r} are named as splits, but there is no training split "
            "with class folders"
        )
    inner = [{entry.name for entry in entries(folder) if entry.is_dir() and rubbish(entry.name) is None} for folder in folders]
    common = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    if len(common) >= _IN_COMMON and all(map(split_of, common)):
        raise ImageSetError(
            "Put the splits above the classes (train/<class>/*, test/<class>/*), or give the path of one folder, if these are "
            f"sets: each of {[folder.name for folder in folders]} in {str(top)!r} holds splits, {common}"
        )
    if len(common) >= _IN_COMMON:
        raise ImageSetError(
            "Name the splits train and test, or, if these are classes, move them into a folder train: all of "
            f"{[folder.name for folder in folders]} in {str(top)!r} hold folders of the same names, {common}, which may be the "
            "classes"
        )


def _chosen(found: dict[SplitName, Path], notes: Counter[str]) -> dict[str, Path]:
    """The training and the test split; a test split without class folders has no labels."""
    splits: dict[str, Path] = {"train": found.pop("train")}
    for split in ("test", "validation"):
        folder = found.get(split)
        if folder is None:
            continue
        images = sum(1 for _ in _image_files(folder, Counter()))
        if not _has_folders(folder):
            notes[f"left out: no labels in {folder.name}"] = images
        elif "test" not in splits:
            splits["test"] = folder
        else:
            notes[f"left out: {folder.name}"] = images
    return splits


def _unwrapped(folder: Path, notes: Counter[str], *, in_split: bool = False) -> Path:
    """The folder itself, or the inner one where it holds folders through one folder alone; a split is no wrapper's inside."""
    passed = Counter[str]()
    inside = _folders(folder, passed)
    if len(inside) != 1 or passed[_LOOSE] or not _has_folders(inside[0]):
        return folder
    if split_of(inside[0].name) is not None and not in_split:
        return folder
    notes.update(passed)
    return _unwrapped(inside[0], notes, in_split=in_split)


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and rubbish(entry.name) is None for entry in entries(folder))


def _encloses(outer: Path, inner: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _folders(parent: Path, notes: Counter[str]) -> list[Path]:
    """The folders that may be classes or splits, sorted."""
    folders = []
    for entry in entries(parent):
        if not entry.is_dir():
            notes[_LOOSE] += _is_image(entry.name)
        elif (reason := rubbish(entry.name)) is not None:
            notes[reason] += 1
        elif _encloses(entry, parent):
            notes["passed over: link to an enclosing folder"] += 1
        else:
            folders.append(entry)
    return folders


def _classes(split: Path, notes: Counter[str]) -> dict[str, list[Path]]:
    """The image files of each class, both sorted."""
    classes = {}
    for folder in _folders(split, notes):
        if not folder.name.isprintable():
            raise ImageSetError(f"Rename the folder {folder.name!r}: a class must have a printable name")
        classes[folder.name] = sorted(_image_files(folder, notes))
    return classes


def _image_files(folder: Path, notes: Counter[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=fail):
        for name in list(folders):
            reason = rubbish(name)
            if reason is not None:
                folders.remove(name)
                notes[reason] += 1
            elif os.path.islink(os.path.join(parent, name)):  # os.walk lists it and does not enter it
                notes["passed over: link to a folder"] += 1
        for name in files:
            if _is_image(name):
                yield Path(parent, name)
            else:
                notes["passed over: hidden file" if name.startswith(".") else "passed over: not an image file"] += 1


IMAGE_SETS.add(
    "folder",
    Reader(
        kind="either",
        description="your own image files, a folder for each class",
        source="yours",
        layout="a folder with train/<class>/* and test/<class>/*, or with <class>/*, which is divided 80/20; or its archive",
        licence="yours",
        path="required",
        targets=("class",),
        stamp=stamp,
        read=read,
    ),
)
