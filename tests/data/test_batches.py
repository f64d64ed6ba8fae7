from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from emoreg.config import AugmentationConfig
from emoreg.data import Split, batches
from emoreg.data.augmentation import denormalize
from emoreg.data.batches import Batches
from emoreg.seeding import generator
from tests.helpers.trials import CPU, noise_batches, noise_split

NOTHING = AugmentationConfig(crop_padding=0)
EVERYTHING = AugmentationConfig(flip=True, color_jitter=0.3, random_erasing=0.5, mixup=0.4, cutmix=1.0)


def numbered(num_images: int) -> Batches:
    """Images whose pixels and targets are their number."""
    images = np.broadcast_to(np.arange(num_images, dtype=np.uint8)[:, None, None, None], (num_images, 4, 4, 3)).copy()
    return Batches(Split(images=images, targets=np.arange(num_images)), device=CPU)


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "test")


@pytest.mark.parametrize(
    ("num_images", "sizes"), [(10, [4, 4, 2]), (9, [4, 4]), (8, [4, 4]), (11, [4, 4, 3]), (3, [3]), (2, [2]), (1, [])]
)
def test_an_epoch_has_every_image_once_but_a_last_single_one(num_images: int, sizes: list[int]) -> None:
    split = numbered(num_images)
    found = list(split.epoch(4, NOTHING, num_images, draws()))
    assert [len(targets) for _, targets in found] == sizes
    assert split.num_steps(4) == len(sizes)
    seen = [int(target) for _, targets in found for target in targets]
    assert len(set(seen)) == len(seen) == sum(sizes)
    for images, targets in found:
        assert torch.equal(denormalize(images)[:, 0, 0, 0].long(), targets)


def test_the_order_is_random_and_decided_by_the_generator() -> None:
    split, stream = numbered(50), draws()
    orders = [torch.cat([targets for _, targets in split.epoch(8, NOTHING, 50, stream)]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    again = torch.cat([targets for _, targets in split.epoch(8, NOTHING, 50, draws())]).tolist()
    assert again == orders[0]
    assert orders[0] != sorted(orders[0])


def unlike_classes(*sizes: int) -> Batches:
    """Images of classes of these sizes."""
    targets = np.repeat(np.arange(len(sizes)), sizes)
    return Batches(Split(images=np.zeros((len(targets), 4, 4, 3), np.uint8), targets=targets), device=CPU)


@pytest.mark.parametrize(("sampling", "share"), [("natural", 0.9), ("sqrt", 0.75), ("balanced", 0.5)])
def test_classes_are_drawn_by_their_size_its_root_or_alike(sampling: Any, share: float) -> None:
    split = unlike_classes(9000, 1000)
    found = torch.cat([targets for _, targets in split.epoch(500, NOTHING, 2, draws(), sampling=sampling)])
    assert len(found) == 10_000
    assert float((found == 0).double().mean()) == pytest.approx(share, abs=0.02)


def test_weights_go_by_class_and_are_one_on_average_over_the_images() -> None:
    split = unlike_classes(90, 10, 0)
    assert split.class_weights("none", 3) is None
    for kind, ratio in (("balanced", 9.0), ("sqrt", 3.0)):
        weights = split.class_weights(kind, 3)  # type: ignore[arg-type]
        assert weights is not None
        assert weights[1] / weights[0] == pytest.approx(ratio)
        assert (90 * weights[0] + 10 * weights[1]) / 100 == pytest.approx(1.0)
        assert weights[2] == 0.0


def test_an_epoch_is_the_same_to_the_bit_from_the_same_state() -> None:
    split = noise_batches(40)
    for (first, targets), (second, again) in zip(
        split.epoch(16, EVERYTHING, 3, draws()), split.epoch(16, EVERYTHING, 3, draws()), strict=True
    ):
        assert torch.equal(first, second)
        assert torch.equal(targets, again)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_an_epoch_begun_at_a_step_goes_on_as_the_whole_one(first: int) -> None:
    split, whole, part = noise_batches(40), draws(), draws()
    expected = list(split.epoch(16, EVERYTHING, 3, whole))[first:]
    found = list(split.epoch(16, EVERYTHING, 3, part, first=first))
    assert len(found) == 3 - first
    for batch, same in zip(found, expected, strict=True):
        assert all(map(torch.equal, batch, same))
    assert torch.equal(whole.get_state(), part.get_state())


def test_an_augmentation_leaves_the_draws_of_the_others_as_they_were() -> None:
    split = noise_batches(200, size=16)
    few, more, mixed = AugmentationConfig(flip=True), AugmentationConfig(flip=True, random_erasing=1.0), EVERYTHING
    streams = [draws() for _ in range(3)]
    epochs = [
        list(split.epoch(50, augmentation, 3, stream)) for augmentation, stream in zip((few, more, mixed), streams, strict=True)
    ]
    states = [stream.get_state() for stream in streams]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    for (images, targets), (erased, same) in zip(epochs[0], epochs[1], strict=True):
        assert torch.equal(targets, same)
        unchanged = (images == erased).all(dim=1).flatten(1).float().mean(1)
        assert (unchanged > 0.6).all()  # equal crops and flips, outside the rectangle
        assert (unchanged < 1).all()


def test_evaluation_has_every_image_in_order_and_as_it_is() -> None:
    split = noise_split(1100, size=4)
    found = list(Batches(split, device=CPU).evaluation())
    assert [len(targets) for _, targets in found] == [512, 512, 76]
    images = denormalize(torch.cat([images for images, _ in found])).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, split.images)
    assert np.array_equal(torch.cat([targets for _, targets in found]).numpy(), split.targets)


def test_permuted_targets_keep_their_counts_and_their_images() -> None:
    split = noise_batches(300)
    permuted = split.with_permuted_targets(draws())
    (images, targets), (same, other) = next(split.evaluation()), next(permuted.evaluation())
    assert torch.equal(images, same)
    assert torch.equal(targets.bincount(), other.bincount())
    assert 0.2 < (targets == other).float().mean() < 0.5  # a third agree by chance
    assert torch.equal(next(split.with_permuted_targets(draws()).evaluation())[1], other)
    assert torch.equal(next(split.evaluation())[1], targets)  # the first is as it was


def test_regression_targets_pass_through() -> None:
    split = Split(images=noise_split(6).images, targets=np.arange(12, dtype=np.float32).reshape(6, 2))
    found = torch.cat([targets for _, targets in Batches(split, device=CPU).epoch(4, EVERYTHING, None, draws())])
    assert sorted(found.tolist()) == split.targets.tolist()


def test_images_mapped_read_only_are_neither_copied_nor_warned_about() -> None:
    split = noise_split(4)
    split.images.setflags(write=False)
    held = Batches(split, device=CPU)
    assert held._images.data_ptr() == split.images.ctypes.data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_stay_on_the_host_make_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, split = torch.device("cuda"), noise_split(100)
    resident = Batches(split, device=cuda)
    monkeypatch.setattr(batches, "_SHARE_OF_FREE_MEMORY", 0.0)
    streamed = Batches(split, device=cuda)
    assert resident._images.is_cuda
    assert not streamed._images.is_cuda
    for first, second in zip(
        resident.epoch(16, EVERYTHING, 3, draws()), streamed.epoch(16, EVERYTHING, 3, draws()), strict=True
    ):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    for first, second in zip(resident.evaluation(), streamed.evaluation(), strict=True):
        assert torch.equal(first[0], second[0])


def test_labels_are_permuted_by_group_where_images_belong_together() -> None:
    targets = np.repeat(np.arange(100) % 3, 4)
    split = replace(noise_split(400), targets=targets, groups=np.repeat(np.random.default_rng(0).permutation(100), 4))
    permuted = Batches(split, device=CPU).with_permuted_targets(draws())
    found = next(permuted.evaluation())[1].numpy()
    assert (found.reshape(100, 4) == found[::4, None]).all()
    assert np.array_equal(np.bincount(found), np.bincount(targets))
    assert 0.2 < (found == targets).mean() < 0.5
    values = replace(split, targets=np.stack([targets, -targets], axis=1).astype(np.float32))
    both = next(Batches(values, device=CPU).with_permuted_targets(draws()).evaluation())[1].numpy()
    assert both.dtype == np.float32
    assert np.array_equal(both[:, 0], -both[:, 1])


def test_a_group_of_several_labels_is_permuted_label_by_label() -> None:
    targets, owners = np.tile([0, 0, 1, 1], 50), np.repeat(np.arange(50), 4)
    split = replace(noise_split(200), targets=targets, groups=owners)
    found = next(Batches(split, device=CPU).with_permuted_targets(draws()).evaluation())[1].numpy().reshape(100, 2)
    assert (found[:, 0] == found[:, 1]).all()
    assert np.bincount(found[:, 0]).tolist() == [50, 50]
