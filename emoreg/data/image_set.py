"""An image set in memory: decoded, typed, fingerprinted; mapped from a prepared Arrow file, never copied."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from emoreg.config import ImageSetConfig

NUM_LOOKS = 6
"""Numbers that an image is compared with others by."""
Targets = Int[np.ndarray, " N"] | Float[np.ndarray, "N T"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Images of one split. N images of side S, RGB; targets are class indices, or T real numbers for regression.

    Images of one group belong together; a group has one number in all splits of a set. None where each stands by itself.
    ``looks`` are what duplicates are found by, where they were kept (``emoreg.data.duplicates``).
    """

    images: UInt8[np.ndarray, "N S S 3"]
    targets: Targets
    groups: Int[np.ndarray, " N"] | None = None
    looks: UInt64[np.ndarray, "N L"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Int[np.ndarray, " M"] | slice) -> Split:
        """The images at ``indices``, copied; those of a slice are not."""
        groups, looks = (None if some is None else some[indices] for some in (self.groups, self.looks))
        return Split(images=self.images[indices], targets=self.targets[indices], groups=groups, looks=looks)

    @property
    def num_groups(self) -> int | None:
        """How many groups it has images of; None where each image stands by itself."""
        return None if self.groups is None else len(np.unique(self.groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """A prepared image set.

    Attributes:
        name: the reader's name.
        class_names: names by class index; the names of the real-valued targets for regression.
        regression: whether the targets are real numbers.
        fingerprint: SHA-256 over pixels, targets, class names and groups, where there are some: equal exactly when what is
            learned from is equal, and cut alike.
        train: the training split, whole (see ``cut_validation``).
        test: the test split. Closed to everything but an explicit evaluation.
        summary: what the reader met, e.g. ``{"converted from L": 3, "refused: truncated": 1}``.
        origins: where "train" and "test" come from, in words; "test" is absent where it was cut from the training split.
    """

    name: str
    class_names: tuple[str, ...]
    regression: bool
    fingerprint: str
    train: Split
    test: Split
    summary: dict[str, int]
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        """Width of a head for this set: number of classes, or of regression targets."""
        return len(self.class_names)

    @property
    def left_out(self) -> list[str]:
        """What of the source is not in the set, each with how often: "passed over: hidden file (3)"."""
        kinds = ("left out", "passed over", "refused")
        return [f"{what} ({count})" for what, count in self.summary.items() if what.startswith(kinds)]

    @property
    def test_split(self) -> str:
        """What tells its test split from others, at any size of its images: a digest of its targets, in order, and classes."""
        content = hashlib.sha256(repr((len(self.test), self.class_names)).encode())
        content.update(np.ascontiguousarray(self.test.targets).tobytes())
        return content.hexdigest()[:32]


class LoadImages(Protocol):
    """Gives image sets: ``partial(load, storage=...)``, or ``FetchedSets`` on a machine of a cluster."""

    def __call__(self, config: ImageSetConfig, *, image_size: int) -> ImageSet:
        """The image set, whole, at ``image_size``; see ``load``."""
