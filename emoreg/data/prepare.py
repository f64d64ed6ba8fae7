"""From a source of images to an Arrow file that is mapped into memory: decoded once, then shared by whoever asks.

The file has one record batch for each split, train and test, with two columns: `image`, a fixed-shape tensor of uint8
[S, S, 3], and `target`, an int64 class index or a fixed-size list of float32. Its schema's metadata holds the class names,
the fingerprint and the summary. Its name carries a hash of the source's stamp, so that a changed source gets a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from emoreg.config import ImageSetConfig
from emoreg.data.decode import Refused, decode, strict_decoding
from emoreg.data.imageset import ImageSet, Split, Targets
from emoreg.data.readers import check
from emoreg.data.readers.contents import Contents, Item, Request
from emoreg.errors import ImageSetError, StorageError

FORMAT_VERSION = "1"
"""Goes up when the same source would be decoded differently, or laid out differently in the prepared file."""

REFUSED_SHARE = 0.01
"""Largest share of a split that may be unreadable or without a label; one image is always allowed."""

_NAMES_SHOWN = 3

log = logging.getLogger(__name__)


def load(config: ImageSetConfig, *, image_size: int, storage: Path) -> ImageSet:
    """The image set, whole, at ``image_size``; prepared first where ``storage`` does not have it yet.

    Arrays are read-only views of the mapped file: nothing is copied, and processes of one machine share the pages. The
    subset and the validation split that ``config`` asks for are cut by ``cut_validation``, not here.

    Raises:
        ImageSetError: when the source is missing, laid out wrongly, or too damaged to learn from.
        StorageError: when the prepared file cannot be written.
    """
    reader = check(config)
    folder = storage / "imagesets"
    try:
        request = _request(config, image_size, folder)
        path, key = _place(config, request, folder)
        prepared = open_prepared(path, config.name, key)
        if prepared is not None:
            return prepared
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            prepared = open_prepared(path, config.name, key)  # another process may have prepared it while this one waited
            if prepared is None:
                if path.exists():
                    log.warning("%s is not a whole prepared image set: preparing it again", path)
                _prepare(reader.read(request), name=config.name, image_size=image_size, key=key, path=path)
                prepared = open_prepared(path, config.name, key)
    except pa.ArrowInvalid as error:
        raise ImageSetError(f"the files of {config.name!r} must be whole, but {config.path!r} is not ({error})") from error
    except OSError as error:
        raise StorageError(
            f"{config.name!r} must be readable and {str(folder)!r} writable, but preparing it failed ({error}): see to space "
            "and permissions"
        ) from error
    assert prepared is not None, f"{path} was just written"
    return prepared


def prepared_file(config: ImageSetConfig, *, image_size: int, storage: Path) -> tuple[Path, str]:
    """Where ``load`` keeps the set, and the key in the file that says what it was made of."""
    folder = storage / "imagesets"
    return _place(config, _request(config, image_size, folder), folder)


def _request(config: ImageSetConfig, image_size: int, folder: Path) -> Request:
    target = config.target or check(config).targets[0]
    return Request(path=config.path, target=target, image_size=image_size, downloads=folder / "downloads")


def _place(config: ImageSetConfig, request: Request, folder: Path) -> tuple[Path, str]:
    source = [FORMAT_VERSION, config.name, request.target, str(request.image_size), *check(config).stamp(request)]
    key = hashlib.sha256("\n".join(source).encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"{config.name}-{request.image_size}px-{key[:12]}.arrow", key


def open_prepared(path: Path, name: str, key: str) -> ImageSet | None:
    """The prepared set, or None where there is none or the file is not what was written."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            metadata = file.schema.metadata or {}
            if metadata.get(b"emoreg.key", b"").decode() != key or file.num_record_batches != 2:
                return None
            train, test = (_split(file.get_batch(index)) for index in range(2))
    except (pa.ArrowInvalid, OSError):  # absent, cut short, or no Arrow file
        return None
    return ImageSet(
        name=name,
        class_names=tuple(json.loads(metadata[b"class_names"])),
        regression=train.targets.ndim == 2,
        fingerprint=metadata[b"emoreg.fingerprint"].decode(),
        train=train,
        test=test,
        summary=json.loads(metadata[b"emoreg.cli.summary"]),
    )


def _split(batch: Any) -> Split:
    target = batch.column("target")
    if pa.types.is_fixed_size_list(target.type):
        targets = target.values.to_numpy().reshape(len(target), target.type.list_size)
    else:
        targets = target.to_numpy()
    return Split(images=batch.column("image").to_numpy_ndarray(), targets=targets)


@dataclass(frozen=True, slots=True)
class _Decoded:
    images: UInt8[np.ndarray, "N S S 3"]
    targets: Targets


def _prepare(contents: Contents, *, name: str, image_size: int, key: str, path: Path) -> None:
    """Decode both splits and put the file in its place, whole or not at all."""
    if not contents.regression and len(contents.class_names) < 2:
        raise ImageSetError(
            f"{name!r} must have two classes or more to learn from, but it has {list(contents.class_names)}: "
            "check the layout with `emoreg data list`"
        )
    # Under the lock: what is there was left by a process that was killed.
    scratch = path.with_suffix(".preparing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        summary = Counter(contents.notes)
        splits = []
        for split, items, count in (
            ("train", contents.train, contents.num_train),
            ("test", contents.test, contents.num_test),
        ):
            with open(scratch / split, "wb") as pixels:
                targets = _decode_split(f"{name} {split}", items, count, image_size, contents, pixels, summary)
            shape = (len(targets), image_size, image_size, 3)
            splits.append(_Decoded(np.memmap(scratch / split, dtype=np.uint8, mode="r", shape=shape), targets))
        _count_oddities(name, contents, splits, summary)
        _write(scratch / path.name, contents, splits, dict(sorted((+summary).items())), key)
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _decode_split(
    label: str,
    items: Iterable[Item],
    count: int,
    image_size: int,
    contents: Contents,
    pixels: BinaryIO,
    summary: Counter[str],
) -> Targets:
    """Append each item's pixels to ``pixels``; its target is returned, its oddities counted in ``summary``."""
    targets: list[int | tuple[float, ...]] = []
    refused: dict[str, list[str]] = {}
    num_refused = 0
    console = Console(stderr=True)
    with strict_decoding():
        for item in track(items, f"preparing {label}", count, console=console, transient=True, disable=not console.is_terminal):
            try:
                target = _target(item, contents)
                if item.picture is None:
                    raise Refused("no image")
                image, notes = decode(item.picture, image_size)
            except Refused as reason:
                num_refused += 1
                refused.setdefault(str(reason), []).append(item.name)
                if num_refused > max(1, REFUSED_SHARE * count):
                    raise ImageSetError(
                        f"at most {REFUSED_SHARE:.0%} of a split may be unreadable, but {num_refused} of the first "
                        f"{len(targets) + num_refused} images of {label} are, among them {item.name} ({reason}): "
                        "repair or remove them"
                    ) from reason
                continue
            pixels.write(image.data)
            targets.append(target)
            summary.update(notes)
    if not targets:
        raise ImageSetError(f"a split must hold an image, but {label} is empty: check the layout with `emoreg data list`")
    for why, names in refused.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
        summary[f"refused: {why} ({shown})"] += len(names)
    return np.array(targets, dtype=np.float32 if contents.regression else np.int64)


def _target(item: Item, contents: Contents) -> int | tuple[float, ...]:
    target = item.target
    if target is None:
        raise Refused("no label")
    if isinstance(target, tuple):
        if not all(map(np.isfinite, target)):
            raise Refused("a target that is not finite")
    elif not 0 <= target < len(contents.class_names):
        raise Refused("a label outside the classes")
    return target


def _count_oddities(name: str, contents: Contents, splits: list[_Decoded], summary: Counter[str]) -> None:
    """Refuse classes that cannot be learned; count what makes a test score mean less than it seems to."""
    train, test = splits
    if not contents.regression:
        missing, untested = (set(range(len(contents.class_names))) - set(split.targets.tolist()) for split in splits)
        empty = [contents.class_names[index] for index in sorted(missing)]
        if empty:
            raise ImageSetError(
                f"every class of {name!r} must have a training image, but {empty} have none: remove the class or fill it"
            )
        if untested:
            summary["classes without a test image"] = len(untested)
    seen = {hashlib.sha256(image.data).digest() for image in train.images}
    leaked = sum(hashlib.sha256(image.data).digest() in seen for image in test.images)
    if leaked:
        summary["test images that are also in train, pixel by pixel"] = leaked


def _write(path: Path, contents: Contents, splits: list[_Decoded], summary: dict[str, int], key: str) -> None:
    digest = hashlib.sha256(json.dumps(contents.class_names).encode())
    for split in splits:
        digest.update(json.dumps(split.images.shape).encode())
        digest.update(split.images.data)
        digest.update(split.targets.data)
    tensor = pa.fixed_shape_tensor(pa.uint8(), splits[0].images.shape[1:])
    num_targets = len(contents.class_names)
    target = pa.list_(pa.float32(), num_targets) if contents.regression else pa.int64()
    schema = pa.schema(
        [pa.field("image", tensor, nullable=False), pa.field("target", target, nullable=False)],
        metadata={
            "emoreg.key": key,
            "emoreg.fingerprint": digest.hexdigest(),
            "emoreg.cli.summary": json.dumps(summary),
            "class_names": json.dumps(contents.class_names),
        },
    )
    with open(path, "wb") as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            for split in splits:
                # Views of the scratch files: however large the split, it passes through the page cache alone.
                flat = pa.FixedSizeListArray.from_arrays(pa.array(split.images.reshape(-1)), int(np.prod(tensor.shape)))
                targets = pa.array(split.targets.reshape(-1))
                if contents.regression:
                    targets = pa.FixedSizeListArray.from_arrays(targets, num_targets)
                columns = [pa.ExtensionArray.from_storage(tensor, flat), targets]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())
