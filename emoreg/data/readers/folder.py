"""A tree of image files with a folder for each class: `<class>/*`, or `train/<class>/*` and `test/<class>/*`.

Splits go by the names that the Hugging Face hub knows (`emoreg.data.layout`), and a folder that holds nothing but one other
folder is a wrapper of it. Class folders may hold further folders. What systems leave behind, hidden files and folders, files
that no image extension marks, and links to folders below a class are passed over and counted. A validation folder is the test
split where there is no labelled test folder, and is left alone where there is one. A tree without a test split is divided: a
fifth of each class is the test split, by a hash of the paths.

Where a group is asked for, it names the levels of folders: `person/class` is `<person>/<class>/*`, `class/person`
`<class>/<person>/*`, and an image in no person's folder is a group by itself. A person of one name in several classes or splits
is one person.
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

_CLASS = "class"
_Levels = tuple[str, ...]
"""The levels of folders below a split, one of which is the class; those beside it name an image's group."""

_LOOSE = "passed over: image in no class folder"
_IN_COMMON = 2
"""Folders of the first level of which most hold this many inner folders of the same names are splits, folds or people's."""
_INNER = "folder inside a class folder, read with it (people's? then set the group to class/person or person/class)"


def stamp(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file that is read."""
    root, levels, unheard = _root(request), _levels(request), Counter[str]()
    classes = [_classes(split, levels, unheard) for split in _splits(root, levels, unheard).values()]
    return stamp_of((file for some in classes for files in some.values() for file, _ in files), root)


def read(request: ImageSetRequest) -> ImageSetContents:
    """The files of each split in the order of their paths; classes in the order of their names."""
    root, levels = _root(request), _levels(request)
    notes: Counter[str] = Counter()
    splits = _splits(root, levels, notes)
    found = {split: _classes(folder, levels, notes) for split, folder in splits.items()}
    names = sorted(set().union(*found.values()))
    if not names:
        raise ImageSetError(f"Give a folder that holds a folder of images for each class: {str(root)!r} has none")
    items: dict[str, list[Item]] = {
        split: [
            Item(file, names.index(label), str(file.relative_to(root)), group)
            for label, files in classes.items()
            for file, group in files
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


def _levels(request: ImageSetRequest) -> _Levels:
    if request.group is None:
        return (_CLASS,)
    levels = tuple(request.group.strip("/").split("/"))
    if levels.count(_CLASS) != 1 or len(levels) < 2 or not all(levels):
        raise ImageSetError(
            "Write the group as the levels of folders below the splits, such as class/person or person/class: one of them must "
            f"be 'class', and another name the group, but it is {request.group!r}"
        )
    return levels


def _splits(root: Path, levels: _Levels, notes: Counter[str]) -> dict[str, Path]:
    """The folders of class folders: of "train" and "test", or "train" alone for a tree that is to be divided."""
    top = _unwrapped(root, levels, notes)
    beside = Counter[str]()
    folders = _folders(top, beside)
    named: dict[SplitName, list[Path]] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split is not None:
            named.setdefault(split, []).append(folder)
    others = [folder.name for folder in folders if split_of(folder.name) is None]
    if not _are_splits(named, others, levels):
        _refuse_hidden_splits(top, folders, named, levels)
        return {"train": top}
    for split, some in named.items():
        if len(some) > 1:
            raise ImageSetError(
                f"Keep one folder for each split: {[folder.name for folder in some]} of {str(top)!r} all say {split}"
            )
    notes.update(beside)
    notes.update(f"passed over: folder beside the splits ({name})" for name in others)
    found = {split: _unwrapped(some[0], levels, notes, in_split=True) for split, some in named.items()}
    return _chosen(found, levels, notes)


def _are_splits(named: dict[SplitName, list[Path]], others: list[str], levels: _Levels) -> bool:
    """Whether folders are splits, which hold class folders, and not classes of such names, which hold images."""
    train = named.get("train", [])
    if not any(_has_classes(folder, levels) for folder in train):
        return False
    return len(named) > 1 or not others or all(is_split_word(folder.name) for folder in train)


def _refuse_hidden_splits(top: Path, folders: list[Path], named: dict[SplitName, list[Path]], levels: _Levels) -> None:
    """Refuse what would be learned as classes and is none: splits without class folders, and splits of unknown names."""
    suspects = [folder for some in named.values() for folder in some]
    alone = len(named) > 1 or len(suspects) == len(folders)
    if suspects and (alone or any(is_split_word(folder.name) and _has_classes(folder, levels) for folder in suspects)):
        raise ImageSetError(
            "Give train/<class>/* and test/<class>/*, or rename what are classes: "
            f"{sorted(folder.name for folder in suspects)} of {str(top)!r} are named as splits, but there is no training split "
            "with class folders"
        )
    common = _common(folders)
    if len(common) >= _IN_COMMON and all(map(split_of, common)):
        raise ImageSetError(
            "Put the splits above the classes (train/<class>/*, test/<class>/*), or give the path of one folder, if these are "
            f"sets: {[folder.name for folder in folders]} in {str(top)!r} hold splits, {common}"
        )
    if len(common) >= _IN_COMMON and len(levels) == 1:
        raise ImageSetError(
            "Name the splits train and test, or set the group to class/person or person/class, or, if these are classes, move "
            f"them into a folder train: most of {[folder.name for folder in folders]} in {str(top)!r} hold folders of the same "
            f"names, {common}, which may be the classes"
        )


def _common(folders: list[Path]) -> list[str]:
    """The names of inner folders that most of these folders hold: not everyone made every face."""
    held = Counter(entry.name for folder in folders for entry in _inner(folder))
    return sorted(name for name, count in held.items() if count > 1 and 2 * count > len(folders))


def _inner(folder: Path) -> list[Path]:
    return [entry for entry in entries(folder) if entry.is_dir() and rubbish(entry.name) is None]


def _chosen(found: dict[SplitName, Path], levels: _Levels, notes: Counter[str]) -> dict[str, Path]:
    """The training and the test split; a test split without class folders has no labels."""
    splits: dict[str, Path] = {"train": found.pop("train")}
    for split in ("test", "validation"):
        folder = found.get(split)
        if folder is None:
            continue
        images = sum(1 for _ in _image_files(folder, Counter()))
        if not _has_classes(folder, levels):
            notes[f"left out: no labels in {folder.name}"] = images
        elif "test" not in splits:
            splits["test"] = folder
        else:
            notes[f"left out: {folder.name}"] = images
    return splits


def _unwrapped(folder: Path, levels: _Levels, notes: Counter[str], *, in_split: bool = False) -> Path:
    """The folder itself, or the inner one where it holds folders through one folder alone; a split is no wrapper's inside."""
    passed = Counter[str]()
    inside = _folders(folder, passed)
    if len(inside) != 1 or passed[_LOOSE] or not _has_classes(inside[0], levels):
        return folder
    if split_of(inside[0].name) is not None and not in_split:
        return folder
    notes.update(passed)
    return _unwrapped(inside[0], levels, notes, in_split=in_split)


def _has_classes(folder: Path, levels: _Levels) -> bool:
    """Whether a folder holds folders as deep as the level of the classes."""
    return any(levels[0] == _CLASS or _has_classes(entry, levels[1:]) for entry in _inner(folder))


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
        elif parent.resolve().is_relative_to(entry.resolve()):
            notes["passed over: link to an enclosing folder"] += 1
        else:
            folders.append(entry)
    return folders


def _classes(
    split: Path, levels: _Levels, notes: Counter[str], above: tuple[str, ...] = ()
) -> dict[str, list[tuple[Path, str | None]]]:
    """The image files of each class with the names of their groups, if they have any; all are sorted."""
    classes: dict[str, list[tuple[Path, str | None]]] = {}
    for folder in _folders(split, notes):
        if levels[0] != _CLASS:
            for name, files in _classes(folder, levels[1:], notes, (*above, folder.name)).items():
                classes.setdefault(name, []).extend(files)
            continue
        if not folder.name.isprintable():
            raise ImageSetError(f"Rename the folder {folder.name!r}: a class must have a printable name")
        classes.setdefault(folder.name, [])
        for file in sorted(_image_files(folder, notes)):
            below = file.relative_to(folder).parts[:-1][: len(levels) - 1]
            owner = (*above, *below) if len(below) == len(levels) - 1 else ()
            classes[folder.name].append((file, "/".join(owner) or None))
        if len(levels) == 1:
            inner = {file.relative_to(folder).parts[0] for file, _ in classes[folder.name] if file.parent != folder}
            notes.update({_INNER: len(inner)} if inner else {})
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
        layout="a folder with train/<class>/* and test/<class>/*, or with <class>/*, which is divided 80/20; or its archive; "
        "--group person/class for <person>/<class>/*",
        licence="yours",
        path="required",
        targets=("class",),
        groups="levels of folders below the splits: class/person, person/class",
        stamp=stamp,
        read=read,
    ),
)
