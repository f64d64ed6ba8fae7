"""Cuts a training split in two, and down to a number of images: by index, stratified by class, groups whole, seeded."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from emoreg.config import ImageSetConfig
from emoreg.data.groups import NO_PART, allot
from emoreg.data.image_set import ImageSet, Split, Targets
from emoreg.errors import ImageSetError
from emoreg.formatting import counted
from emoreg.seeding import derive_seed


def parts(image_set: ImageSet, config: ImageSetConfig) -> tuple[Split, Split]:
    """The training and the validation part of a set's training split that ``config`` asks for; see ``cut_validation``."""
    return cut_validation(
        image_set.train, config.validation_fraction, config.split_seed, config.num_images, num_folds=config.num_folds
    )


def parts_as(image_set: ImageSet, config: ImageSetConfig, relabelled: Split) -> tuple[Split, Split]:
    """The parts of a split with the images of a set's training split and other labels: the images that the set's own has."""
    rest, validation = _cut(image_set.train, config.validation_fraction, config.split_seed, config.num_images, config.num_folds)
    return relabelled.take(np.sort(rest)), relabelled.take(np.sort(validation))


def cut_validation(
    split: Split, fraction: float, seed: int, num_images: int | None = None, *, num_folds: int | None = None
) -> tuple[Split, Split]:
    """Divide a training split into a training and a validation part, then keep ``num_images`` of the first.

    Both are stratified by class (regression targets are not), and every class keeps a training image. Groups are whole in
    either part, as far as ``num_images``, which goes by image, does not leave out some of a group. The validation part does
    not depend on ``num_images``; a smaller number of images is a subset of a larger one, whatever the fraction.
    Where nothing is cut, nothing is copied.

    Args:
        split: N images.
        fraction: share of N that is held out, rounded to whole images or, nearly, to whole groups (one at least).
        seed: decides which images.
        num_images: size of the training part. None: all that is left.
        num_folds: the held-out part is one of so many folds in place of a fraction, the one of number ``seed`` modulo theirs;
            the folds do not depend on the seed.

    Returns:
        (train, validation); the second is empty for a fraction of 0.

    Raises:
        ImageSetError: when ``num_images`` is more than is left, or too few for one of each class, or there are too few groups.
    """
    rest, validation = _cut(split, fraction, seed, num_images, num_folds)
    if len(validation) == 0 and num_images in (None, len(split)):
        return split, split.take(slice(0, 0))
    return split.take(np.sort(rest)), split.take(np.sort(validation))


def _cut(
    split: Split, fraction: float, seed: int, num_images: int | None, num_folds: int | None
) -> tuple[Int[np.ndarray, " L"], Int[np.ndarray, " M"]]:
    """The images of either part, as ``cut_validation`` has them."""
    num_classes = 1 if split.targets.ndim == 2 else len(np.unique(split.targets))
    rest, validation = _divided(split, fraction, seed, num_folds)
    if num_images is not None and not num_classes <= num_images <= len(rest):
        raise ImageSetError(
            f"Choose another num_images, or None for all: it must lie between {num_classes} (one of each class) and "
            f"{len(rest)} (the training images that validation leaves), but it is {num_images}"
        )
    return rest[:num_images], validation


def _divided(
    split: Split, fraction: float, seed: int, num_folds: int | None
) -> tuple[Int[np.ndarray, " L"], Int[np.ndarray, " M"]]:
    """The images that are left for training, in a stratified order, and those that are held out."""
    labels = _labels(split.targets)
    if num_folds is None and (split.groups is None or fraction == 0):
        num_validation = min(round(fraction * len(split)), len(split) - len(np.unique(labels)))
        order = _stratified_order(labels, seed)
        return order[: len(split) - num_validation], order[len(split) - num_validation :]
    if num_folds is None:
        assert split.groups is not None
        is_held = _cut_groups(labels, split.groups, [1 - fraction, fraction], derive_seed(seed, "split"), whole=0) == 1
    else:
        fold = seed % num_folds
        is_held = _folds(labels, split.groups, num_folds) == fold
        missing = set(labels.tolist()) - set(labels[~is_held].tolist())
        if missing:
            raise ImageSetError(
                "Choose another num_folds, or another group: a fold must leave each class a training image, but the groups of "
                f"fold {fold} hold all of the classes with index {sorted(missing)}"
            )
    rest = np.flatnonzero(~is_held)
    return rest[_stratified_order(labels[rest], seed)], np.flatnonzero(is_held)


def _folds(labels: Int[np.ndarray, " N"], groups: Int[np.ndarray, " N"] | None, num_folds: int) -> Int[np.ndarray, " N"]:
    """The fold of each image, of one partition; none for a class's only image or group, which always stays for training."""
    seed = derive_seed(0, "folds")
    if groups is not None:
        return _cut_groups(labels, groups, [1 / num_folds] * num_folds, seed)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    dealt = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class by class, as cards are
    folds: Int[np.ndarray, " N"] = np.empty(len(labels), dtype=np.int64)
    folds[dealt] = np.arange(len(labels)) % num_folds
    folds[np.isin(labels, np.flatnonzero(np.bincount(labels) == 1))] = NO_PART
    return folds


def _cut_groups(
    labels: Int[np.ndarray, " N"], groups: Int[np.ndarray, " N"], shares: list[float], seed: int, whole: int | None = None
) -> Int[np.ndarray, " N"]:
    names, groups = np.unique(groups, return_inverse=True)
    part: Int[np.ndarray, " N"] = allot(
        groups, labels, shares, np.random.default_rng(seed).permutation(len(names)), whole=whole
    )
    found = len(np.unique(part[part != NO_PART]))
    if found < len(shares):
        raise ImageSetError(
            f"Choose another group, or fewer parts: each of {len(shares)} parts must get a group, besides those that hold all "
            f"images of a class and stay for training, but {counted(len(names), 'group')} are enough for {found}"
        )
    return part


def _labels(targets: Targets) -> Int[np.ndarray, " N"]:
    """What is stratified by: the class, and for real-valued targets nothing."""
    return targets if targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)


def _stratified_order(targets: Int[np.ndarray, " N"], seed: int) -> Int[np.ndarray, " N"]:
    """A random order of the images, any beginning and any end of which has the classes in their proportion."""
    random = np.random.default_rng(derive_seed(seed, "split"))
    shuffled = random.permutation(len(targets))
    position: Float[np.ndarray, " N"] = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        # The k-th of n images of a class stands at (k + 1/2) / n of the whole; the first of each class before all others.
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
        position[members[0]] = 0.0
    # Equal positions, of classes of equal size, keep the random order.
    order: Int[np.ndarray, " N"] = shuffled[np.argsort(position[shuffled], kind="stable")]
    return order
