"""What reads an image set: from the user's own function, by ``@image_set``, or one of ``emoreg.data.readers``."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.fs
from jaxtyping import Bool

from emoreg.config.code import source_fingerprint
from emoreg.config.image_sets import Fit
from emoreg.config.registry import IMAGE_SETS
from emoreg.data.decode import Picture, Refused
from emoreg.data.groups import allot
from emoreg.data.hub import SCHEME
from emoreg.data.layout import fail
from emoreg.errors import ImageSetError
from emoreg.storage.files import expand

HELD_OUT = 0.2
"""Share of a set without a test split of its own that becomes one."""

Target = int | Sequence[float] | None
"""Index of a class, real numbers for regression, or None where the source has no label."""


class Item(NamedTuple):
    """One image as its source has it; one without a picture or a target is left out of the set, and counted with the reason."""

    picture: Picture | Refused | None
    target: Target
    name: str = ""
    """Where the image comes from, for messages."""
    group: str | None = None
    """What it belongs to, with other images, in any split. None: it stands by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSetContents:
    """What a reader returns: the images of both splits, each an iterable that is gone through once.

    An image is a uint8 array ([H, W], [H, W, 3] or [H, W, 4]), a PIL image, the path of an image file, or such a file's bytes.

    Attributes:
        class_names: names by class index; the names of the real-valued targets for regression.
        train: pairs (image, target), as ``zip(images, targets)`` makes them, or (image, target, name, group): ``Item``s.
        test: the same. None: a fifth of each class of ``train``, by a hash of the images' names or places; groups stay whole.
        regression: whether the targets are real numbers.
        notes: counts of what the reader left out or changed, for `emoreg data prepare`.
        origins: where "train" and "test" come from, in words, for the same.

    Example:
        >>> import emoreg
        >>> emoreg.ImageSetContents(class_names=["sad", "glad"], train=[("sad.png", 0), ("glad.png", 1)]).regression
        False
    """

    class_names: Sequence[str]
    train: Iterable[tuple[Picture | None, Target] | Item]
    test: Iterable[tuple[Picture | None, Target] | Item] | None = None
    regression: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSetRequest:
    """What a reader is asked for.

    Attributes:
        path: of the configuration.
        target: of the configuration, else the first of the reader's targets, else "label".
        image_size: side in pixels that images will be brought to; a reader that draws its images may draw at any.
        downloads: a folder where a reader may keep what it fetches.
        image_column: of the configuration.
        fit: of the configuration: how the preparation makes a picture square.
        group: of the configuration: what belongs together, in the reader's words.

    Example:
        >>> import emoreg, pathlib
        >>> request = emoreg.ImageSetRequest(path="~/mine", target="label", image_size=32, downloads=pathlib.Path("/tmp"))
        >>> request.local == pathlib.Path("~/mine").expanduser()
        True
    """

    path: str | None
    target: str
    image_size: int
    downloads: Path
    image_column: str | None = None
    fit: Fit = "squeeze"
    group: str | None = None

    @property
    def local(self) -> Path | None:
        """``path`` as a place on this machine, with ``~`` expanded; None where there is none, or it is a URI."""
        return None if self.path is None or "://" in self.path else expand(self.path).absolute()

    @property
    def is_of_hub(self) -> bool:
        """Whether ``path`` names a set of the Hugging Face hub."""
        return self.path is not None and self.path.startswith(SCHEME)

    def open(self) -> tuple[Any, str]:
        """The file system of ``path``, and the path in it."""
        if self.local is not None:
            return pyarrow.fs.LocalFileSystem(), str(self.local)
        filesystem, root = pyarrow.fs.FileSystem.from_uri(self.path)
        return filesystem, root.rstrip("/")


Read = Callable[[ImageSetRequest], ImageSetContents]
Kind = Literal["stimuli", "task", "either"]
PathUse = Literal["required", "optional", "none"]


def stamp_files(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file at the path."""
    if request.path is None:
        return []
    filesystem, root = request.open()
    infos = [filesystem.get_file_info(root)]
    if not infos[0].is_file:
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(root))
        infos = found + [info for folder in found if not folder.is_file for info in _infos_below(filesystem, folder.path)]
    return sorted(f"{info.path.removeprefix(root)} {info.size} {info.mtime_ns}" for info in infos if info.is_file)


def _infos_below(filesystem: Any, folder: str) -> list[Any]:
    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return list(filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True)))
    # Not by a selector, which follows links, in circles too.
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names]
    return list(filesystem.get_file_info(paths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A source of images, and how to read it: an entry of ``IMAGE_SETS``.

    Attributes:
        kind: what it is made for: pre-training, the task, or either.
        description: one line for a list.
        source: where the images come from.
        layout: what ``path`` must hold.
        licence: the terms of the images, as their makers state them.
        path: whether the configuration must, may or must not give a path.
        targets: what can be learned, the default first; any label column where "*" is among them.
        has_columns: whether it may be asked for the column of the images.
        groups: what ``ImageSetConfig.group`` may be, in words; empty where it must be left out.
        package: the optional package that it needs, as (import name, distribution).
        stamp: lines that change when the source does; cheap, reads no pixel.
        read: lists the source.
        fingerprint: of the code of ``read``, where that is not emoreg's own.
    """

    kind: Kind
    description: str
    source: str
    layout: str
    licence: str
    path: PathUse
    targets: tuple[str, ...]
    has_columns: bool = False
    groups: str = ""
    package: tuple[str, str] | None = None
    stamp: Callable[[ImageSetRequest], list[str]] = stamp_files
    read: Read
    fingerprint: str | None = None


def image_set(
    name: str,
    *,
    kind: Kind = "either",
    description: str = "",
    source: str = "yours",
    licence: str = "yours",
    path: PathUse = "optional",
    targets: tuple[str, ...] = (),
) -> Callable[[Read], Read]:
    """Register a function as the reader of the image sets called ``name``.

    The set is read once and kept, until the function's code, the modules that it imports from its own folder, or a file at
    the path of the configuration changes.

    Args:
        name: what ``ImageSetConfig.name`` calls it.
        kind: what it is made for: "stimuli", "task" or "either".
        description: one line for `emoreg data list`; the first line of the function's docstring where left out.
        source: where the images come from.
        licence: the terms of the images.
        path: whether ``ImageSetConfig.path`` is "required", "optional" or "none".
        targets: what ``ImageSetConfig.target`` may be, the default first; anything where "*" is among them.

    Example:
        >>> import emoreg, numpy
        >>> @emoreg.image_set("grey", path="none")
        ... def grey(request: emoreg.ImageSetRequest) -> emoreg.ImageSetContents:
        ...     "Dark and light squares."
        ...     images = [numpy.full((8, 8), shade, numpy.uint8) for shade in range(0, 250, 5)]
        ...     return emoreg.ImageSetContents(class_names=["dark", "light"], train=zip(images, [0] * 25 + [1] * 25))
        >>> emoreg.TrialConfig(task=emoreg.ImageSetConfig(name="grey")).task.name
        'grey'
    """

    def register(read: Read) -> Read:
        about = description or (inspect.getdoc(read) or "").partition("\n")[0]
        IMAGE_SETS.add(
            name,
            Reader(
                kind=kind,
                description=about,
                source=source,
                layout="" if path == "none" else about,
                licence=licence,
                path=path,
                targets=targets,
                has_columns=True,
                groups="as its function reads `request.group`",
                read=read,
                fingerprint=source_fingerprint(read),
            ),
            origin=read,
        )
        return read

    return register


def held_out(
    names: Sequence[str], classes: Sequence[Hashable], groups: Sequence[str | None] | None = None
) -> Bool[np.ndarray, " N"]:
    """Which of the named things make up the test split of a source that has none.

    In each class the fifth (``HELD_OUT``, at least one, never all) whose names' SHA-256 come first: the same on every
    machine, and for each name nearly independent of what else is there. Where some belong to groups, a fifth as nearly as
    whole groups make it, in the order of their SHA-256 (see ``allot``).

    Raises:
        ImageSetError: where the groups leave nothing to hold out.
    """
    if groups is not None and any(group is not None for group in groups):
        owners = [f"alone: {name}" if group is None else group for name, group in zip(names, groups, strict=True)]
        return _held_out_groups(owners, classes)
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(classes):
        members.setdefault(label, []).append(index)
    chosen = np.zeros(len(names), dtype=bool)
    for indices in members.values():
        indices.sort(key=lambda index: (sha256(names[index]), names[index]))
        count = min(max(1, round(HELD_OUT * len(indices))), len(indices) - 1)
        chosen[indices[:count]] = True
    return chosen


def _held_out_groups(owners: Sequence[str], classes: Sequence[Hashable]) -> Bool[np.ndarray, " N"]:
    in_order = sorted(set(owners), key=lambda owner: (sha256(owner), owner))
    number = {owner: index for index, owner in enumerate(in_order)}
    label = {name: index for index, name in enumerate(dict.fromkeys(classes))}
    groups, labels = np.array([number[owner] for owner in owners]), np.array([label[name] for name in classes])
    in_test: Bool[np.ndarray, " N"] = allot(groups, labels, [1 - HELD_OUT, HELD_OUT], np.arange(len(number)), whole=0) == 1
    if not in_test.any():
        raise ImageSetError(
            "Give the set a test split, or choose another group: a fifth of its groups is to be the test split, but none of "
            f"{len(number)} can be spared, since each class must keep one"
        )
    return in_test


def sha256(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal. Names of undecodable bytes are hashed as the bytes that they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
