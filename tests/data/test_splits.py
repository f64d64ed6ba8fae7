from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
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


@st.composite
def people(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """The classes of images, and whose images they are: at least three people have images of each class."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    num_classes, num_people = draw(st.integers(1, 5)), draw(st.integers(8, 40))
    sizes = random.integers(1, draw(st.integers(2, 30)), num_people)
    owners = np.repeat(np.arange(num_people), sizes)
    targets = random.integers(0, num_classes, len(owners))
    some = np.repeat(np.arange(num_classes), 3)
    owners = np.concatenate([owners, np.tile(np.arange(3), num_classes)])
    order = random.permutation(len(owners))
    return np.concatenate([targets, some])[order], (owners + 7)[order]


THREE_FOR_SEVEN_EIGHTHS = (
    np.array([1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1]),
    np.array([9, 9, 10, 13, 7, 8, 11, 9, 14, 12, 8, 8, 7, 7]),
)
"""People of whom those of class 1 are few, and all wanted for a large validation part."""


@example(THREE_FOR_SEVEN_EIGHTHS, 0.875, 0)
@given(people(), st.just(0.0) | st.floats(0.01, 0.9), seeds)
def test_a_group_is_never_on_both_sides(images: tuple[np.ndarray, np.ndarray], fraction: float, seed: int) -> None:
    targets, owners = images
    split = replace(numbered(targets), groups=owners)
    train, validation = cut_validation(split, fraction, seed)
    assert sorted(numbers(train) + numbers(validation)) == list(range(len(targets)))
    assert train.groups is not None
    assert validation.groups is not None
    assert np.array_equal(train.groups, owners[numbers(train)])
    assert not {*train.groups} & {*validation.groups}
    assert {*train.targets} == {*targets}
    assert (len(validation) > 0) == (fraction > 0)
    largest = np.bincount(owners).max()
    assert abs(len(validation) - fraction * len(targets)) <= 2 * largest
    fewer, same = cut_validation(split, fraction, seed, num_images=max(len(train) // 2, len({*targets})))
    assert numbers(same) == numbers(validation)
    assert set(numbers(fewer)) <= set(numbers(train))


def test_groups_are_cut_nearly_as_images_are() -> None:
    random = np.random.default_rng(0)
    owners = random.integers(0, 60, 3000)
    preference = random.dirichlet(np.ones(5), 60)  # people differ in what they show
    targets = np.array([random.choice(5, p=preference[owner]) for owner in owners])
    cuts = [cut_validation(replace(numbered(targets), groups=owners), 0.2, seed)[1] for seed in range(5)]
    at_random = [np.isin(owners, np.random.default_rng(seed).permutation(60)[:12]) for seed in range(5)]

    def uneven(labels: np.ndarray) -> float:
        return float(np.abs(np.bincount(labels, minlength=5) / np.bincount(targets) - 0.2).mean())

    assert np.mean([uneven(cut.targets) for cut in cuts]) < np.mean([uneven(targets[held]) for held in at_random]) / 2
    assert len({tuple(numbers(validation)) for validation in cuts}) == 5


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("num_folds", [2, 5])
def test_every_image_is_validated_once_over_all_folds(num_folds: int, grouped: bool) -> None:
    targets = np.random.default_rng(1).integers(0, 4, 203)
    owners = np.random.default_rng(2).integers(0, 40, 203)
    split = replace(numbered(targets), groups=owners if grouped else None)
    cuts = [cut_validation(split, 0.1, seed, num_folds=num_folds) for seed in range(num_folds)]
    assert sorted(number for _, validation in cuts for number in numbers(validation)) == list(range(203))
    for train, validation in cuts:
        assert sorted(numbers(train) + numbers(validation)) == list(range(203))
        allowed = 4 if grouped else 1
        assert np.abs(np.bincount(validation.targets) - np.bincount(targets) / num_folds).max() <= allowed
        if grouped:
            assert not set(owners[numbers(train)]) & set(owners[numbers(validation)])
    again, _ = cut_validation(split, 0.0, num_folds + 1, num_folds=num_folds, num_images=40)
    assert set(numbers(again)) <= set(numbers(cuts[1][0]))


def test_the_only_image_or_group_of_a_class_always_stays_for_training() -> None:
    targets = np.array([0] * 20 + [1])
    for owners in (None, np.array([*range(10), *range(10), 99])):
        for seed in range(4):
            train, _ = cut_validation(replace(numbered(targets), groups=owners), 0.1, seed, num_folds=4)
            assert 20 in numbers(train)


def test_groups_that_cannot_be_divided_are_refused() -> None:
    one = replace(numbered(np.arange(10) % 2), groups=np.zeros(10, dtype=np.int64))
    with pytest.raises(ImageSetError, match=r"Choose another group, .* each of 2 parts .* but 1 group are enough for 0"):
        cut_validation(one, 0.1, 0)
    three = replace(numbered(np.arange(12) % 2), groups=np.arange(12) // 4)
    with pytest.raises(ImageSetError, match=r"each of 5 parts .* but 3 groups are enough for 3"):
        cut_validation(three, 0.0, 0, num_folds=5)


def test_a_fold_that_holds_all_groups_of_a_class_is_refused() -> None:
    split = replace(numbered(np.array([0, 0, 0, 0, 1, 0, 0, 1])), groups=np.array([5, 3, 4, 3, 4, 4, 3, 5]))
    with pytest.raises(ImageSetError, match=r"Choose another num_folds, .* groups of fold 1 hold all .* index \[1\]"):
        cut_validation(split, 0.1, 1, num_folds=2)
