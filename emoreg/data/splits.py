"""Cuts a training split in two, and down to a number of images: by index, stratified by class, seeded."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from emoreg.config import ImageSetConfig
from emoreg.data.image_set import ImageSet, Split, Targets
from emoreg.errors import ImageSetError
from emoreg.seeding import derive_seed


def parts(image_set: ImageSet, config: ImageSetConfig) -> tuple[Split, Split]:
    """The training and the validation part of a set's training split that ``config`` asks for; see ``cut_validation``."""
    return cut_validation(image_set.train, config.validation_fraction, config.split_seed, config.num_images)


def cut_validation(split: Split, fraction: float, seed: int, num_images: int | None = None) -> tuple[Split, Split]:
    """Divide a training split into a training and a validation part, then keep ``num_images`` of the first.

    Both are stratified by class (regression targets are not), and every class keeps a training image. The validation part
    does not depend on ``num_images``; a smaller number of images is a subset of a larger one, whatever the fraction.
    Where nothing is cut, nothing is copied.

    Args:
        split: N images.
        fraction: share of N that is held out, rounded to whole images.
        seed: decides which images.
        num_images: size of the training part. None: all that is left.

    Returns:
        (train, validation); the second is empty for a fraction of 0.

    Raises:
        ImageSetError: when ``num_images`` is more than is left, or too few for one of each class.
    """
    num_classes = 1 if split.targets.ndim == 2 else len(np.unique(split.targets))
    num_validation = min(round(fraction * len(split)), len(split) - num_classes)
    left = len(split) - num_validation
    if num_images is not None and not num_classes <= num_images <= left:
        raise ImageSetError(
            f"Choose another num_images, or None for all: it must lie between {num_classes} (one of each class) and {left} "
            f"(the training images that validation leaves), but it is {num_images}"
        )
    if num_validation == 0 and num_images in (None, len(split)):
        return split, Split(images=split.images[:0], targets=split.targets[:0])
    order = _stratified_order(split.targets, seed)
    return split.take(np.sort(order[: num_images or left])), split.take(np.sort(order[left:]))


def _stratified_order(targets: Targets, seed: int) -> Int[np.ndarray, " N"]:
    """A random order of the images, any beginning and any end of which has the classes in their proportion."""
    random = np.random.default_rng(derive_seed(seed, "split"))
    shuffled = random.permutation(len(targets))
    if targets.ndim == 2:
        return shuffled
    position: Float[np.ndarray, " N"] = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        # The k-th of n images of a class stands at (k + 1/2) / n of the whole; the first of each class before all others.
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
        position[members[0]] = 0.0
    # Equal positions, of classes of equal size, keep the random order.
    order: Int[np.ndarray, " N"] = shuffled[np.argsort(position[shuffled], kind="stable")]
    return order
