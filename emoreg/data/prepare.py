"""From a source of images to a prepared file (``emoreg.data.prepared``): decoded once, then shared by whoever asks.

The file's name carries a hash of the source's stamp, so that a changed source gets a file of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from emoreg.config import ImageSetConfig
from emoreg.config.registry import IMAGE_SETS
from emoreg.data.archives import stamp, unpacked
from emoreg.data.decode import Refused, decode, strict_decoding
from emoreg.data.duplicates import looks_of
from emoreg.data.hub import SCHEME, check_hub
from emoreg.data.image_set import ImageSet, Split, Targets
from emoreg.data.prepared import obtain, write_prepared
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, Target, held_out, sha256
from emoreg.errors import ImageSetError, StorageError
from emoreg.storage.files import expand, replacing, scratch_folder

FORMAT_VERSION = "4"
"""Goes up when the same source would be decoded differently, or laid out differently in the prepared file."""

REFUSED_SHARE = 0.01
"""Largest share of a split that may be unreadable or without a label; one image is always allowed."""

_NAMES_SHOWN = 3

OnProgress = Callable[[str, int, int | None], None]
"""Told of every image: what is prepared ("fer2013 train"), images so far, and of how many, where that is known."""

log = logging.getLogger(__name__)


def check(config: ImageSetConfig) -> Reader:
    """The reader of an image set, after the checks that cost nothing: name, target, package, path.

    Raises:
        ConfigError: when no reader of this name is registered.
        ImageSetError: when preparing the set is bound to fail.
    """
    reader: Reader = IMAGE_SETS.require(config.name, of="an image set's name")
    name, path, target = config.name, config.path, config.target
    if target is not None and target not in reader.targets and "*" not in reader.targets:
        known = f"one of {list(reader.targets)}" if reader.targets else "left out"
        raise ImageSetError(f"Choose another target of {name!r}: it must be {known}, but it is {target!r}")
    if reader.package is not None and importlib.util.find_spec(reader.package[0]) is None:
        raise ImageSetError(f'Run pip install -e ".[quickstart]": {name!r} needs {reader.package[1]}, which is not installed')
    if reader.path == "none" and path is not None:
        raise ImageSetError(f"Leave out the path of {name!r}: it takes none, but it is {path!r}")
    if reader.path == "required" and path is None:
        raise ImageSetError(f"Give {name!r} a path to {reader.layout}: it is None")
    if config.image_column is not None and not reader.has_columns:
        raise ImageSetError(f"Leave out the image_column of {name!r}: it has no columns, but it is {config.image_column!r}")
    if config.group is not None and not reader.groups:
        raise ImageSetError(f"Leave out the group of {name!r}: its reader takes none, but it is {config.group!r}")
    if path is not None and path.startswith(SCHEME):
        check_hub(path)
    elif path is not None and "://" not in path and not expand(path).exists():
        raise ImageSetError(
            f"Correct the path of {name!r}: {path!r} does not exist, and must be {reader.layout} (from {reader.source})"
        )
    return reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A prepared file: its name, and the key in it that says what it was made of."""

    name: str
    key: str


def load(config: ImageSetConfig, *, image_size: int, storage: Path, on_progress: OnProgress = lambda *_: None) -> ImageSet:
    """The image set, whole, at ``image_size``; prepared first where ``storage`` does not have it yet.

    Arrays are read-only views of the mapped file: nothing is copied, and processes of one machine share the pages. The
    subset and the validation split that ``config`` asks for are cut by ``parts``, not here.

    Raises:
        UserError: when the source is missing, laid out wrongly, or too damaged to learn from, or the prepared file cannot be
            written.
    """
    folder = storage / "imagesets"
    reader, request = _request(config, image_size, folder)
    try:
        prepared = _prepared(config.name, reader, request)
        make = partial(_prepare, reader, request, config.name, prepared.key, on_progress)
        image_set = obtain(folder / prepared.name, config.name, prepared.key, make)
    except pa.ArrowInvalid as error:
        raise ImageSetError(
            f"Fetch {config.name!r} again: its files must be whole, but those of {config.path!r} are not ({error})"
        ) from error
    except OSError as error:
        raise StorageError(
            f"See to space and permissions: {config.name!r} must be readable and {str(folder)!r} writable, but preparing it "
            f"failed ({error})"
        ) from error
    assert image_set is not None, f"{prepared} was just written"
    return image_set


def prepared_file(config: ImageSetConfig, *, image_size: int, storage: Path) -> Prepared:
    """What ``load`` keeps the set in, in the storage's ``imagesets``."""
    return _prepared(config.name, *_request(config, image_size, storage / "imagesets"))


def _request(config: ImageSetConfig, image_size: int, folder: Path) -> tuple[Reader, ImageSetRequest]:
    reader = check(config)
    target = config.target or next(iter(reader.targets), "label")
    request = ImageSetRequest(
        path=config.path,
        target=target,
        image_size=image_size,
        downloads=folder / "downloads",
        image_column=config.image_column,
        fit=config.fit,
        group=config.group,
    )
    return reader, request


def _prepared(name: str, reader: Reader, request: ImageSetRequest) -> Prepared:
    package = "" if reader.package is None else importlib.metadata.version(reader.package[1])
    code = reader.fingerprint or ""
    asked = [name, request.target, str(request.image_size), str(request.image_column), request.fit, str(request.group)]
    lines = [FORMAT_VERSION, *asked, code, package, *stamp(request, reader)]
    key = sha256("\n".join(lines))
    return Prepared(name=f"{name}-{request.image_size}px-{key[:12]}.arrow", key=key)


def _prepare(reader: Reader, request: ImageSetRequest, name: str, key: str, on_progress: OnProgress, path: Path) -> None:
    """Decode both splits and put the file in its place, whole or not at all."""
    with scratch_folder(path.parent / "preparing") as scratch:
        contents = reader.read(unpacked(request, reader, scratch))
        _check_contents(name, contents)
        summary = Counter(contents.notes)
        splits, owners = [], []
        for split, items in _divided(contents):
            with open(scratch / split, "wb") as pixels:
                told = partial(on_progress, f"{name} {split}")
                targets, groups = _decode(items, f"{name} {split}", contents, request, pixels, summary, told)
            shape = (len(targets), request.image_size, request.image_size, 3)
            images = np.memmap(scratch / split, dtype=np.uint8, mode="r", shape=shape)
            splits.append(Split(images=images, targets=targets, looks=looks_of(images)))
            owners.append(groups)
        splits = _grouped(name, request, splits, owners, summary)
        _count_oddities(name, contents, splits, summary)
        with replacing(path) as stream:
            write_prepared(stream, contents, splits, dict(sorted((+summary).items())), key)


def _check_contents(name: str, contents: object) -> None:
    if not isinstance(contents, ImageSetContents):
        raise ImageSetError(f"Return an ImageSetContents from the reader of {name!r}: it returned {type(contents).__name__!r}")
    if not contents.regression and len(contents.class_names) < 2:
        raise ImageSetError(
            f"Check the layout of {name!r} with `emoreg data list`: there must be two classes or more to learn from, but there "
            f"are {list(contents.class_names)}"
        )


def _divided(contents: ImageSetContents) -> list[tuple[str, Iterable[Any]]]:
    """The items of each split; those of a source without a test split are divided."""
    if contents.test is not None:
        return [("train", contents.train), ("test", contents.test)]
    items = [Item(*item) for item in contents.train]
    names = [item.name or f"row {row}" for row, item in enumerate(items)]
    classes = [None if contents.regression else item.target for item in items]
    in_test = held_out(names, classes, [item.group for item in items])
    return [
        (split, [item for item, held in zip(items, in_test, strict=True) if held == (split == "test")])
        for split in ("train", "test")
    ]


def _decode(
    items: Iterable[Any],
    label: str,
    contents: ImageSetContents,
    request: ImageSetRequest,
    pixels: BinaryIO,
    summary: Counter[str],
    on_progress: Callable[[int, int | None], None],
) -> tuple[Targets, list[str | None]]:
    """Append each item's pixels to ``pixels``; its target and its group are returned, its oddities counted in ``summary``."""
    targets: list[Target] = []
    groups: list[str | None] = []
    refused: dict[str, list[str]] = {}
    count, seen = operator.length_hint(items), 0
    with strict_decoding():
        for seen, item in enumerate(items, 1):
            picture, target, name, group = Item(*item)
            try:
                target = _target(target, contents)
                if picture is None:
                    raise Refused("no image")
                if isinstance(picture, Refused):
                    raise picture
                image, notes = decode(picture, request.image_size, request.fit)
            except Refused as reason:
                name = name or f"row {seen - 1}"
                refused.setdefault(str(reason), []).append(name if name.isprintable() else ascii(name))
                _check_refused(refused, count or math.inf, label)
            else:
                pixels.write(image.data)
                targets.append(target)
                groups.append(group)
                summary.update(notes)
            on_progress(seen, count or None)
    _check_refused(refused, seen, label)
    if not targets:
        raise ImageSetError(f"Check the layout with `emoreg data list`: a split must hold an image, but {label} is empty")
    for why, names in refused.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
        summary[f"refused: {why} ({shown})"] += len(names)
    return np.array(targets, dtype=np.float32 if contents.regression else np.int64), groups


def _grouped(
    name: str, request: ImageSetRequest, splits: list[Split], owners: list[list[str | None]], summary: Counter[str]
) -> list[Split]:
    """The splits with the numbers of their groups, by the names of these; as they are where no image has a group."""
    found = [{group for group in some if group is not None} for some in owners]
    if not set.union(*found):
        if request.group is not None:
            raise ImageSetError(
                f"Leave out the group of {name!r}, or correct it: its images must belong to groups, but its reader found no "
                f"{request.group!r} of any"
            )
        return splits
    numbers: dict[str | int, int] = {}
    alone = itertools.count()  # an image without a group is one by itself
    grouped = [
        replace(split, groups=np.array([numbers.setdefault(next(alone) if one is None else one, len(numbers)) for one in some]))
        for split, some in zip(splits, owners, strict=True)
    ]
    shared = found[0] & found[1]
    summary["groups that are in train and in test"] = len(shared)
    summary["test images of a group that is also in train"] = sum(group in shared for group in owners[1])
    summary["images without a group, each by itself"] = next(alone)
    return grouped


def _check_refused(refused: dict[str, list[str]], count: float, label: str) -> None:
    number = sum(map(len, refused.values()))
    if number > max(1, REFUSED_SHARE * count):
        reason, names = next(reversed(refused.items()))
        raise ImageSetError(
            f"Repair or remove images of {label}: at most {REFUSED_SHARE:.0%} of a split may be unreadable, but {number} are, "
            f"among them {names[-1]} ({reason})"
        )


def _target(target: Target, contents: ImageSetContents) -> int | tuple[float, ...]:
    num_classes = len(contents.class_names)
    if target is None:
        raise Refused("no label")
    if contents.regression:
        numbers = tuple(map(float, target)) if isinstance(target, Iterable) else (float(target),)
        if len(numbers) != num_classes or not all(map(math.isfinite, numbers)):
            raise Refused(f"a target that is not {num_classes} finite numbers")
        return numbers
    try:
        index = operator.index(target)  # type: ignore[arg-type]  # what has no index is refused
    except TypeError:
        raise Refused("a label that is not the index of a class") from None
    if not 0 <= index < num_classes:
        raise Refused("a label outside the classes")
    return index


def _count_oddities(name: str, contents: ImageSetContents, splits: list[Split], summary: Counter[str]) -> None:
    """Refuse classes that cannot be learned; count those that are not tested."""
    if not contents.regression:
        missing, untested = (set(range(len(contents.class_names))) - set(split.targets.tolist()) for split in splits)
        empty = [contents.class_names[index] for index in sorted(missing)]
        if empty:
            raise ImageSetError(f"Fill or remove classes of {name!r}: each must have a training image, but {empty} have none")
        summary["classes without a test image"] = len(untested)
