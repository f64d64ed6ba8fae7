"""Images of one set with the labels that another set has for the same pixels: what is learned of images, not of their affect.

Legend: N images, S their side in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from emoreg.data.image_set import ImageSet
from emoreg.errors import ImageSetError

_DIGEST_BYTES = 16


def relabel(image_set: ImageSet, labels: ImageSet) -> ImageSet:
    """The training images of ``image_set``, in their order and groups, with the targets that ``labels`` has for them.

    These may be in its training or test split, which may be cut by class, and so otherwise. It may have more images.

    Raises:
        ImageSetError: where an image is not among the others, to the pixel, or the labels are the same classes.
    """
    theirs = np.concatenate([_digests(labels.train.images), _digests(labels.test.images)])
    places = _places(_digests(image_set.train.images), theirs)
    if (places < 0).any():
        raise ImageSetError(
            f"Name a set with the images of {image_set.name!r} and other labels, e.g. its own name with another target: the "
            f"relabelled images must be the stimuli's to the pixel, but {labels.name!r} lacks {int((places < 0).sum())} of "
            f"their {len(places)} training images"
        )
    targets = np.concatenate([labels.train.targets, labels.test.targets])[places]
    if not (image_set.regression or labels.regression) and _same_classes(image_set.train.targets, targets):
        raise ImageSetError(
            f"Choose another target of the relabelled images: their labels must not be those of the stimuli, but the "
            f"{labels.num_outputs} classes of {labels.name!r} have the same images as those of {image_set.name!r}"
        )
    fingerprint = hashlib.sha256(f"{image_set.fingerprint} {labels.fingerprint}".encode()).hexdigest()
    return replace(labels, train=replace(image_set.train, targets=targets), fingerprint=fingerprint)


def _places(ours: Shaped[np.ndarray, " N"], theirs: Shaped[np.ndarray, " M"]) -> Int[np.ndarray, " N"]:
    """Where each is among the others, or -1; of equal ones the first is the first."""
    order, their_order = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    ours, theirs = ours[order], theirs[their_order]
    which = np.arange(len(ours)) - np.searchsorted(ours, ours, side="left")
    found = np.searchsorted(theirs, ours, side="left") + which
    is_there = found < np.searchsorted(theirs, ours, side="right")
    places: Int[np.ndarray, " N"] = np.full(len(ours), -1)
    places[order[is_there]] = their_order[found[is_there]]
    return places


def _digests(images: UInt8[np.ndarray, "N S S 3"]) -> Shaped[np.ndarray, " N"]:
    found = [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=_DIGEST_BYTES).digest() for image in images]
    return np.array([digest.hex() for digest in found])


def _same_classes(ours: Int[np.ndarray, " N"], theirs: Int[np.ndarray, " N"]) -> bool:
    """Whether one labelling is the other under other names."""
    pairs = len(np.unique(np.stack([ours, theirs], axis=1), axis=0))
    return pairs == len(np.unique(ours)) == len(np.unique(theirs))
