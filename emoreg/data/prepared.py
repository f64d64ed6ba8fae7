"""The prepared file of an image set: an Arrow file that is mapped into memory, and how its wholeness is known.

The file has one record batch for each split, train and test, with the columns `image`, a fixed-shape tensor of uint8
[S, S, 3], `target`, an int64 class index or a fixed-size list of float32, `look`, a fixed-size list of uint64 that duplicates
are found by, and, where images belong together, `group`, an int64. Its schema's metadata holds the class names, the
fingerprint, the summary, where the splits come from, and a digest of all of these and the data: a file that does not match it
is prepared again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from emoreg.data.image_set import NUM_LOOKS, ImageSet, Split
from emoreg.data.reader import ImageSetContents
from emoreg.storage.files import sweep
from emoreg.storage.locks import exclusive

_DIGEST = b"emoreg.digest"
_NOT_WHOLE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError)
"""What it may come to, to read a prepared file that is absent, cut short, or damaged."""
_found_whole: set[tuple[str, int, int, int]] = set()
"""The files whose digests this process has computed: path, inode, size and time of the last change."""

log = logging.getLogger(__name__)


def obtain(path: Path, name: str, key: str, make: Callable[[Path], None]) -> ImageSet | None:
    """The prepared set at ``path``; where there is none, one process makes it, and those that come meanwhile wait for it."""
    image_set = open_prepared(path, name, key)
    if image_set is None:
        with exclusive(path.with_suffix(".lock")):
            image_set = open_prepared(path, name, key)  # another process may have made it while this one waited
            if image_set is None:
                if path.exists():
                    log.warning("%s is not a whole prepared image set: preparing it again", path)
                sweep(path.parent)  # what a process left that was killed in its writing
                make(path)
                image_set = open_prepared(path, name, key)
    return image_set


def open_prepared(path: Path, name: str, key: str) -> ImageSet | None:
    """The prepared set, or None where there is none or the file is not what was written."""
    try:
        metadata, (train, test) = _contents(pa.memory_map(str(path)))
        if metadata[b"emoreg.key"].decode() != key:
            return None
        stat = os.stat(path)
        version = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if version not in _found_whole:
            if metadata[_DIGEST].decode() != _digest(metadata, (train, test)):
                return None
            _found_whole.add(version)
    except _NOT_WHOLE:
        return None
    return ImageSet(
        name=name,
        class_names=tuple(json.loads(metadata[b"class_names"])),
        regression=train.targets.ndim == 2,
        fingerprint=metadata[b"emoreg.fingerprint"].decode(),
        train=train,
        test=test,
        summary=json.loads(metadata[b"emoreg.summary"]),
        origins=json.loads(metadata[b"emoreg.origins"]),
    )


def is_whole(source: pa.NativeFile) -> bool:
    """Whether a prepared file matches its digest."""
    try:
        metadata, splits = _contents(source)
        return metadata[_DIGEST].decode() == _digest(metadata, splits)
    except _NOT_WHOLE:
        return False


def _contents(source: pa.NativeFile) -> tuple[dict[bytes, bytes], tuple[Split, Split]]:
    with pa.ipc.open_file(source) as file:
        if file.num_record_batches != 2:
            raise ValueError("a prepared set has two splits")
        return file.schema.metadata, (_split(file.get_batch(0)), _split(file.get_batch(1)))


def _digest(metadata: Mapping[bytes, bytes], splits: Iterable[Split]) -> str:
    """The digest of a prepared set, which every process that opens it computes: all metadata but itself, and the data."""
    digest = xxhash.xxh3_128()
    for name in sorted(metadata.keys() - {_DIGEST}):
        digest.update(name + b"=" + metadata[name] + b"\n")
    for split in splits:
        for values in (split.images, split.targets, split.groups, split.looks):
            if values is None:
                continue
            digest.update(f"{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _split(batch: Any) -> Split:
    target = batch.column("target")
    if pa.types.is_fixed_size_list(target.type):
        targets = target.values.to_numpy().reshape(len(target), target.type.list_size)
    else:
        targets = target.to_numpy()
    groups = batch.column("group").to_numpy() if "group" in batch.schema.names else None
    look = batch.column("look")
    looks = look.values.to_numpy().reshape(len(look), NUM_LOOKS)
    return Split(images=batch.column("image").to_numpy_ndarray(), targets=targets, groups=groups, looks=looks)


def write_prepared(
    stream: BinaryIO, contents: ImageSetContents, splits: list[Split], summary: dict[str, int], key: str
) -> None:
    """Write the file of a set whose splits, in this order train and test, are ``splits``."""
    class_names = json.dumps(tuple(contents.class_names))
    digest = hashlib.sha256(class_names.encode())
    for split in splits:
        digest.update(json.dumps(split.images.shape).encode())
        digest.update(split.images.data)
        digest.update(split.targets.data)
        if split.groups is not None:
            digest.update(b"groups" + split.groups.data)
    tensor = pa.fixed_shape_tensor(pa.uint8(), splits[0].images.shape[1:])
    num_targets = len(contents.class_names)
    target = pa.list_(pa.float32(), num_targets) if contents.regression else pa.int64()
    metadata = {
        b"emoreg.key": key.encode(),
        b"emoreg.fingerprint": digest.hexdigest().encode(),
        b"emoreg.summary": json.dumps(summary).encode(),
        b"emoreg.origins": json.dumps(dict(contents.origins)).encode(),
        b"class_names": class_names.encode(),
    }
    look = pa.list_(pa.uint64(), NUM_LOOKS)
    columns = {"image": tensor, "target": target, "look": look}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    if splits[0].groups is not None:
        fields.append(pa.field("group", pa.int64(), nullable=False))
    schema = pa.schema(fields, metadata={**metadata, _DIGEST: _digest(metadata, splits)})
    with pa.ipc.new_file(stream, schema) as writer:
        for split in splits:
            # Views of the scratch files: however large the split, it passes through the page cache alone.
            flat = pa.FixedSizeListArray.from_arrays(pa.array(split.images.reshape(-1)), int(np.prod(tensor.shape)))
            targets = pa.array(split.targets.reshape(-1))
            if contents.regression:
                targets = pa.FixedSizeListArray.from_arrays(targets, num_targets)
            assert split.looks is not None
            looks = pa.FixedSizeListArray.from_arrays(pa.array(split.looks.reshape(-1)), NUM_LOOKS)
            arrays = [pa.ExtensionArray.from_storage(tensor, flat), targets, looks]
            if split.groups is not None:
                arrays.append(pa.array(split.groups))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
