"""Finds the same picture in two sets of images, and all but the same: re-encoded, resized, mirrored, brightened.

Exact is certain: equal pixels at the size of the set, as they are or mirrored. Near is found by a difference hash (bits for
"brighter than its neighbour" on grids of 8 x 9 and 9 x 8) and checked on the pictures themselves: brightness and contrast
aside, no cell of 16 x 16 differs by more than half a standard deviation of its picture. On photographs that is the same
photograph; drawings that differ in one thin line, as emoji do, can come as near, and so near ones are counted and told, never
refused. `tests/benchmarks/RESULTS.md` has the rates.

Legend: N and M images of side S, L looks, K and J pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from emoreg.config import ImageSetConfig
from emoreg.config.resolved import CUTS
from emoreg.data.image_set import NUM_LOOKS, ImageSet, Split
from emoreg.data.splits import parts
from emoreg.storage.files import replacing
from emoreg.storage.sealed import seal, unseal

_HASH_SIDE = 8
_STEP = 0.5
"""Grey levels of 256 by which a cell must be brighter than its neighbour: less is noise of a flat surface."""
_MAX_BITS = 12
"""Bits of 128 in which two hashes may differ."""
_GRID = 16
_MAX_RESIDUAL = 0.5
_MIN_CONTRAST = 4.0
"""Standard deviation in grey levels of 256 below which a picture is too flat to be told from others but exactly."""
MAX_PAIRS = 3e10
"""Pairs of images up to which near ones are looked for: about a minute."""
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_AT_ONCE = 1024
_BLOCK = (32, 4096)


class Copies(NamedTuple):
    """How many images of a split have a copy in another."""

    exact: int
    near: int | None
    """Besides the exact ones. None where there are too many images to look for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Pairs of places of the same picture, in a first and a second split. None where near ones were not looked for."""

    exact: Int[np.ndarray, "K 2"]
    near: Int[np.ndarray, "J 2"] | None

    @property
    def copies(self) -> Copies:
        """How many images of the second split have a copy in the first."""
        exact = set(self.exact[:, 1].tolist())
        return Copies(len(exact), None if self.near is None else len(set(self.near[:, 1].tolist()) - exact))


def looks_of(images: UInt8[np.ndarray, "N S S 3"]) -> UInt64[np.ndarray, "N L"]:
    """What images are compared by: digests of the pixels and of the mirrored ones, then hashes: two halves of each."""
    side = images.shape[1]
    rows = [_areas(count, side) for count in (_HASH_SIDE, _HASH_SIDE + 1)]
    columns = np.concatenate([np.kron(_areas(count, side), _GREY) for count in (_HASH_SIDE + 1, _HASH_SIDE)]).T
    looks = np.empty((len(images), NUM_LOOKS), dtype=np.uint64)
    for start in range(0, len(images), _AT_ONCE):
        chunk = np.ascontiguousarray(images[start : start + _AT_ONCE])
        found = looks[start : start + _AT_ONCE]
        found[:, 0] = [xxhash.xxh3_64_intdigest(image.data) for image in chunk]
        found[:, 1] = [xxhash.xxh3_64_intdigest(image.data) for image in np.ascontiguousarray(chunk[:, :, ::-1])]
        strips = (chunk.reshape(-1, 3 * side).astype(np.float32) @ columns).reshape(len(chunk), side, -1)
        across, down = rows[0] @ strips[..., : _HASH_SIDE + 1], rows[1] @ strips[..., _HASH_SIDE + 1 :]
        for place, grids in ((2, (across, down)), (4, (across[..., ::-1], down[..., ::-1]))):
            found[:, place] = _bits(np.diff(grids[0], axis=2))
            found[:, place + 1] = _bits(np.diff(grids[1], axis=1))
    return looks


def find_duplicates(first: Split, second: Split, *, exact_only: bool = False) -> Duplicates:
    """The pictures of ``second`` that ``first`` has too, as they are or mirrored; near ones too, but for ``exact_only``."""
    ours, theirs = (looks_of(split.images) if split.looks is None else split.looks for split in (first, second))
    exact = _exact(first, ours, second, theirs)
    if exact_only or len(first) * len(second) > MAX_PAIRS:
        return Duplicates(exact=exact, near=None)
    others = np.setdiff1d(np.arange(len(second)), exact[:, 1])
    near = [
        _near(first, ours[:, 2:4], second, theirs[:, place : place + 2], others, is_mirrored=place == 4) for place in (2, 4)
    ]
    return Duplicates(exact=exact, near=np.unique(np.concatenate(near), axis=0))


def without_copies(image_set: ImageSet, found: Duplicates) -> ImageSet:
    """The set without the training images that ``found``, in which its training split came first, has exact copies of.

    Where there is one, the set is another one, and has a fingerprint of its own.
    """
    if len(found.exact) == 0:
        return image_set
    kept = np.setdiff1d(np.arange(len(image_set.train)), found.exact[:, 0])
    text = image_set.fingerprint + json.dumps(kept.tolist())
    return replace(image_set, train=image_set.train.take(kept), fingerprint=hashlib.sha256(text.encode()).hexdigest())


def count_test_copies(image_set: ImageSet, folder: Path) -> Copies:
    """The test images of a set that its training split has too; counted once for all who share ``folder``."""
    return _counted_once(folder, (image_set.fingerprint,), lambda: (image_set.train, image_set.test))


def count_validation_copies(image_set: ImageSet, config: ImageSetConfig, folder: Path) -> Copies:
    """The validation images, as ``config`` cuts them, that are trained on too; counted once."""
    cuts = [getattr(config, name) for name in CUTS]
    return _counted_once(folder, (image_set.fingerprint, *cuts), lambda: parts(image_set, config))


def count_task_copies(image_set: ImageSet, task: ImageSet, folder: Path) -> Copies:
    """The test images of a task that the training split of another set has too; counted once."""
    return _counted_once(folder, (image_set.fingerprint, task.fingerprint), lambda: (image_set.train, task.test))


def _counted_once(folder: Path, key: tuple[object, ...], splits: Callable[[], tuple[Split, Split]]) -> Copies:
    text = repr((_MAX_BITS, _MAX_RESIDUAL, *key))
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        return Copies(**unseal(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # not counted yet, or damaged
        copies = find_duplicates(*splits()).copies
        with suppress(OSError), replacing(path) as stream:  # else it is counted again
            stream.write(seal(copies._asdict()))
        return copies


def _exact(
    first: Split, ours: UInt64[np.ndarray, "N L"], second: Split, theirs: UInt64[np.ndarray, "M L"]
) -> Int[np.ndarray, "K 2"]:
    order = np.argsort(ours[:, 0], kind="stable")
    digests = ours[order, 0]
    pairs = set()
    for place, step in ((0, 1), (1, -1)):
        begin, end = (np.searchsorted(digests, theirs[:, place], side=side) for side in ("left", "right"))
        for other in np.flatnonzero(end > begin).tolist():
            same = second.images[other][:, ::step]
            found = order[begin[other] : end[other]].tolist()
            pairs |= {(one, other) for one in found if np.array_equal(first.images[one], same)}
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _near(
    first: Split,
    ours: UInt64[np.ndarray, "N 2"],
    second: Split,
    theirs: UInt64[np.ndarray, "M 2"],
    others: Int[np.ndarray, " O"],
    *,
    is_mirrored: bool,
) -> Int[np.ndarray, "K 2"]:
    """Near pairs of the images of ``first`` and those at ``others`` of ``second``, by their hashes and then by their looks."""
    known, others = np.flatnonzero(ours.any(axis=1)), others[theirs[others].any(axis=1)]  # no bit is a flat picture
    kept = [np.empty((0, 2), dtype=np.int64)]
    for pairs in _alike(ours[known], theirs[others]):
        one, other = known[pairs[:, 0]], others[pairs[:, 1]]
        is_same = _look_same(first.images, one, second.images[:, :, :: -1 if is_mirrored else 1], other)
        kept.append(np.stack([one[is_same], other[is_same]], axis=1))
    return np.concatenate(kept)


def _alike(ours: UInt64[np.ndarray, "N 2"], theirs: UInt64[np.ndarray, "M 2"]) -> Iterator[Int[np.ndarray, "K 2"]]:
    """Pairs of places of hashes that differ in few bits."""
    height, width = _BLOCK
    for top in range(0, len(theirs), height):
        wanted = theirs[top : top + height]
        for left in range(0, len(ours), width):
            there = ours[left : left + width]
            bits = np.bitwise_count(wanted[:, None, 0] ^ there[None, :, 0])
            rows, columns = np.divmod(np.flatnonzero(bits <= _MAX_BITS), len(there))  # far faster than by two dimensions
            both = bits[rows, columns] + np.bitwise_count(wanted[rows, 1] ^ there[columns, 1])
            is_alike = both <= _MAX_BITS
            if is_alike.any():
                yield np.stack([left + columns[is_alike], top + rows[is_alike]], axis=1)


def _look_same(
    first: UInt8[np.ndarray, "N S S 3"],
    one: Int[np.ndarray, " K"],
    second: UInt8[np.ndarray, "M S S 3"],
    other: Int[np.ndarray, " K"],
) -> Bool[np.ndarray, " K"]:
    """Whether the pictures of each pair are the same up to brightness and contrast."""
    found = []
    for start in range(0, len(one), _AT_ONCE):
        chunk = slice(start, start + _AT_ONCE)
        left, right = _standard(first[one[chunk]]), _standard(second[other[chunk]])
        found.append(np.abs(left - right).max(axis=1) <= _MAX_RESIDUAL)  # never for what is not a number
    return np.concatenate(found)


def _standard(images: UInt8[np.ndarray, "N S S 3"]) -> Float[np.ndarray, "N F"]:
    """Pictures on a coarse grid, with a mean of 0 and a standard deviation of 1; flat ones are not numbers."""
    areas = _areas(min(_GRID, images.shape[1]), images.shape[1])
    cells = (areas @ images.astype(np.float32).transpose(0, 3, 1, 2) @ areas.T).reshape(len(images), -1)
    deviation = cells.std(axis=1, keepdims=True)
    scale = np.where(deviation < _MIN_CONTRAST, np.nan, deviation)
    standard: Float[np.ndarray, "N F"] = (cells - cells.mean(axis=1, keepdims=True)) / scale
    return standard


def _areas(count: int, side: int) -> Float[np.ndarray, "C S"]:
    """The share of each of ``side`` pixels in each of ``count`` equal stretches of them."""
    edges = np.linspace(0, side, count + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: Float[np.ndarray, "C S"] = (overlap.clip(0) * (count / side)).astype(np.float32)
    return shares


def _bits(steps: Float[np.ndarray, "N H W"]) -> UInt64[np.ndarray, " N"]:
    bits: UInt64[np.ndarray, " N"] = np.packbits((steps > _STEP).reshape(len(steps), -1), axis=1).view(np.uint64)[:, 0]
    return bits
