"""The stimuli's images with other labels: the same to the pixel, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emoreg.config import ImageSetConfig
from emoreg.data import parts
from emoreg.data.image_set import Split
from emoreg.data.relabelled import relabel
from emoreg.data.splits import parts_as
from emoreg.errors import ImageSetError
from tests.helpers.trials import noise_set, noise_split

AFFECT = noise_set(replace(noise_split(40), groups=np.arange(40) // 2))
SCENES = np.arange(40) % 5


def scenes(order: np.ndarray, **changes: np.ndarray) -> Split:
    split = Split(images=AFFECT.train.images[order], targets=SCENES[order])
    return replace(split, **changes)


def test_labels_go_to_the_images_that_they_are_of() -> None:
    order = np.random.default_rng(1).permutation(40)
    found = relabel(AFFECT, replace(noise_set(scenes(order), num_outputs=5), fingerprint="g"))
    assert (found.train.images == AFFECT.train.images).all()
    assert (found.train.targets == SCENES).all()
    assert (found.train.groups == AFFECT.train.groups).all()
    assert found.num_outputs == 5
    assert len({found.fingerprint, "f", "g"}) == 3


def test_the_same_images_are_trained_on_and_held_out() -> None:
    config = ImageSetConfig(num_images=12, validation_fraction=0.2, split_seed=3)
    found = relabel(AFFECT, noise_set(scenes(np.arange(40)[::-1]), num_outputs=5))
    for ours, theirs in zip(parts(AFFECT, config), parts_as(AFFECT, config, found.train), strict=True):
        assert (ours.images == theirs.images).all()
        places = [int(np.flatnonzero((AFFECT.train.images == image).all(axis=(1, 2, 3)))[0]) for image in ours.images]
        assert theirs.targets.tolist() == SCENES[places].tolist()
    whole = ImageSetConfig(validation_fraction=0.0)
    assert (parts_as(AFFECT, whole, found.train)[0].images == AFFECT.train.images).all()


def test_of_images_that_are_there_twice_the_first_is_the_first() -> None:
    images = AFFECT.train.images.copy()
    images[7] = images[3]
    twice = replace(AFFECT, train=replace(AFFECT.train, images=images))
    labels = noise_set(Split(images=images, targets=SCENES), num_outputs=5)
    assert (relabel(twice, labels).train.targets == SCENES).all()


def test_other_images_are_refused() -> None:
    changed = AFFECT.train.images.copy()
    changed[0, 0, 0, 0] ^= 1
    for split, lacking in ((scenes(np.arange(40), images=changed), 1), (scenes(np.arange(37)), 3)):
        with pytest.raises(ImageSetError, match=f"must be the stimuli's to the pixel, but 'noise' lacks {lacking} of their 40"):
            relabel(AFFECT, noise_set(split, num_outputs=5))
    twice = replace(AFFECT, train=AFFECT.train.take(np.append(np.arange(40), 7)))
    with pytest.raises(ImageSetError, match="lacks 1 of their 41 training images"):
        relabel(twice, noise_set(scenes(np.arange(40)), num_outputs=5))


def test_images_may_be_in_the_other_split_and_there_may_be_more() -> None:
    train, test = scenes(np.arange(25)), scenes(np.append(np.arange(25, 40), 3))
    assert (relabel(AFFECT, noise_set(train, test=test, num_outputs=5)).train.targets == SCENES).all()


def test_the_same_labels_under_other_names_are_refused() -> None:
    renamed = scenes(np.arange(40), targets=(AFFECT.train.targets + 1) % 3)
    with pytest.raises(ImageSetError, match=r"^Choose another target of the relabelled images: their labels must not be those"):
        relabel(AFFECT, noise_set(renamed))
