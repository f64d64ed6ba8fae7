from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoreg.data import Split, cut_validation
from emoreg.errors import ImageSetError


def numbered(targets: np.ndarray) -> Split:
    """A split whose images say which they are."""
    images = np.zeros((len(targets), 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(targets)) % 256
    images[:, 0, 0, 1] = np.arange(len(targets)) // 256
    return Split(images=images, targets=targets)


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].astype(int) + 256 * split.images[:, 0, 0, 1].astype(int)).tolist()


labels = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(
    lambda sizes: np.random.default_rng(len(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
)
fractions = st.floats(0.0, 0.9)
seeds = st.integers(0, 2**31)


@given(labels, fractions, seeds)
def test_the_parts_are_disjoint_stratified_and_whole(targets: np.ndarray, fraction: float, seed: int) -> None:
    split = numbered(targets)
    train, validation = cut_validation(split, fraction, seed)
    assert sorted(numbers(train) + numbers(validation)) == list(range(len(targets)))
    assert np.array_equal(train.targets, targets[numbers(train)])
    classes, counts = np.unique(targets, return_counts=True)
    assert set(train.targets.tolist()) == set(classes.tolist())
    assert len(validation) == min(round(fraction * len(targets)), len(targets) - len(classes))
    share = len(validation) / len(targets)
    for label, count in zip(classes, counts, strict=True):
        # Rounding moves each class by less than one image, and the classes' roundings together fall on the larger ones.
        assert abs((validation.targets == label).sum() - share * count) <= 1 + len(classes) * count / len(targets)


@given(labels, fractions, seeds, st.data())
def test_the_validation_part_does_not_depend_on_the_number_of_images(
    targets: np.ndarray, fraction: float, seed: int, data: st.DataObject
) -> None:
    split = numbered(targets)
    whole, validation = cut_validation(split, fraction, seed)
    large = data.draw(st.integers(len(np.unique(targets)), len(whole)))
    small = data.draw(st.integers(len(np.unique(targets)), large))
    train, same_validation = cut_validation(split, fraction, seed, num_images=large)
    fewer, _ = cut_validation(split, fraction, seed, num_images=small)
    assert numbers(same_validation) == numbers(validation)
    assert len(train) == large
    assert len(fewer) == small
    assert set(numbers(fewer)) <= set(numbers(train)) <= set(numbers(whole))
    assert set(fewer.targets.tolist()) == set(targets.tolist())


def test_balanced_classes_are_cut_evenly() -> None:
    train, validation = cut_validation(numbered(np.repeat(np.arange(10), 50)), 0.1, 0, num_images=100)
    assert np.bincount(validation.targets).tolist() == [5] * 10
    assert np.bincount(train.targets).tolist() == [10] * 10


def test_the_seed_decides() -> None:
    split = numbered(np.repeat(np.arange(4), 50))
    first, again, other = (numbers(cut_validation(split, 0.2, seed)[1]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_regression_is_cut_at_random() -> None:
    targets = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    train, validation = cut_validation(numbered(targets), 0.25, 0, num_images=30)
    assert (len(train), len(validation)) == (30, 25)
    assert not set(numbers(train)) & set(numbers(validation))
    assert np.array_equal(validation.targets, targets[numbers(validation)])


@pytest.mark.parametrize("num_images", [None, 40])
def test_nothing_is_copied_where_nothing_is_cut(num_images: int | None) -> None:
    split = numbered(np.repeat(np.arange(4), 10))
    train, validation = cut_validation(split, 0.0, 0, num_images=num_images)
    assert train is split
    assert len(validation) == 0
    assert validation.images.shape == (0, 2, 2, 3)


@pytest.mark.parametrize("num_images", [3, 37])
def test_a_number_of_images_that_cannot_be_is_refused(num_images: int) -> None:
    with pytest.raises(ImageSetError, match=rf"between 4 .* and 36 .* it is {num_images}"):
        cut_validation(numbered(np.repeat(np.arange(4), 10)), 0.1, 0, num_images=num_images)
