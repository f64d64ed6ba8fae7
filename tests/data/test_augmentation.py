from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from emoreg.config import AugmentationConfig
from emoreg.data.augmentation import (
    NUM_DRAWS,
    color_jitter,
    crop_and_flip,
    denormalize,
    mix,
    normalize,
    random_erasing,
)

_BRIGHTNESS = slice(3, 6)


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        normalize(torch.zeros(2, 4, 8, 8))


def draws(num_images: int, seed: int = 0) -> Tensor:
    return torch.rand((num_images, NUM_DRAWS), generator=torch.Generator().manual_seed(seed))


def bytes_of(num_images: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, size, size, 3), generator=generator, dtype=torch.uint8)


def pixels_of(num_images: int, size: int = 16) -> Tensor:
    return bytes_of(num_images, size).permute(0, 3, 1, 2).float() / 255


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 12), st.integers(0, 3), st.booleans(), st.integers(0, 1000))
def test_cropping_and_flipping_are_those_of_one_image_at_a_time(size: int, padding: int, flip: bool, seed: int) -> None:
    images, uniform = bytes_of(10, size, seed), draws(6, seed)
    indices = torch.randint(0, 10, (6,), generator=torch.Generator().manual_seed(seed))
    result = crop_and_flip(images, indices, uniform, AugmentationConfig(crop_padding=padding, flip=flip))
    for index, u, found in zip(indices, uniform, result, strict=True):
        image = images[index].permute(2, 0, 1).float()
        padded = torch.nn.functional.pad(image[None], (padding,) * 4, mode="reflect")[0]
        top, left = int(u[0] * (2 * padding + 1)), int(u[1] * (2 * padding + 1))
        expected = padded[:, top : top + size, left : left + size]
        if flip and u[2] < 0.5:
            expected = expected.flip(2)
        assert torch.equal(found.float(), expected)


def test_every_offset_and_both_sides_are_drawn_alike() -> None:
    row = torch.arange(8, dtype=torch.uint8)
    images = row[None, :, None, None].expand(1, 8, 8, 3).contiguous()
    tops = crop_and_flip(images, torch.zeros(9000, dtype=torch.long), draws(9000), AugmentationConfig(crop_padding=1))[
        :, 0, :, 0
    ]
    # offset -1 reflects row 1 to the top, 0 leaves row 0 there, +1 brings row 1 there and reflects row 6 to the bottom
    assert {tuple(top.tolist()) for top in tops} == {(1, *range(7)), tuple(range(8)), (*range(1, 8), 6)}
    assert 2700 < (tops[:, 0] == 0).sum() < 3300
    columns = images.transpose(1, 2).contiguous()
    flipped = crop_and_flip(
        columns, torch.zeros(2000, dtype=torch.long), draws(2000), AugmentationConfig(crop_padding=0, flip=True)
    )
    assert 900 < (flipped[:, 0, 0, 0] == 7).sum() < 1100


def test_color_jitter_is_torchvisions_for_each_image() -> None:
    from torchvision.transforms.v2 import functional

    images, uniform, config = pixels_of(8), draws(8), AugmentationConfig(color_jitter=0.6)
    result = color_jitter(images, uniform, config)
    assert result.min() >= 0
    assert result.max() <= 1
    for image, u, found in zip(images, uniform, result, strict=True):
        brightness, contrast, saturation = (1 + 0.6 * (2 * u[_BRIGHTNESS] - 1)).tolist()
        expected = functional.adjust_brightness(image, brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert (found - image).abs().mean() > 0.01


def test_erasing_replaces_one_rectangle_of_the_right_size_by_one_colour() -> None:
    size = 32
    images = torch.full((2000, 3, size, size), 2.0)  # a value that no colour has
    result = random_erasing(images, draws(2000), AugmentationConfig(random_erasing=0.5))
    erased = (result != 2.0).all(dim=1)
    hit = erased.flatten(1).any(dim=1)
    assert 900 < hit.sum() < 1100
    heights, widths = erased.any(dim=2).sum(1)[hit], erased.any(dim=1).sum(1)[hit]
    areas = erased.flatten(1).sum(1)[hit]
    assert torch.equal(areas, heights * widths)  # a rectangle, whole
    share = areas / size**2
    assert share.min() > 0.01
    assert share.max() < 0.36
    assert 0.15 < share.mean() < 0.19  # the mean of U(0.02, 1/3), a little less for those cut at the border
    aspect = heights / widths
    assert 0.9 < aspect.log().mean().exp() < 1.1
    assert aspect.min() < 0.5
    assert aspect.max() > 2
    for image, mask in zip(result[hit][:50], erased[hit][:50], strict=True):
        assert all(len(channel[mask].unique()) == 1 for channel in image)
    where = erased[hit].float().mean(0)
    assert where.min() > 0  # any corner may be hit
    assert torch.equal(random_erasing(images, draws(2000), AugmentationConfig()), images)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_targets_are_the_shares_of_what_was_mixed(mixup: float, cutmix: float) -> None:
    config = AugmentationConfig(mixup=mixup, cutmix=cutmix)
    # The colour of an image is its class, so that its mean pixel tells the share of the class.
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    images = torch.eye(3)[targets][:, :, None, None].expand(6, 3, 16, 16).contiguous()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kinds = set()
    for seed in range(30):
        mixed, shares = mix(images, targets, 3, config, seed)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((2, 3)), shares)
        again = mix(images, targets, 3, config, seed)
        assert torch.equal(mixed, again[0])
        assert torch.equal(shares, again[1])
        if 0.01 < shares[0].max() < 0.99:
            kinds.add("cutmix" if set(mixed.unique().tolist()) == {0.0, 1.0} else "mixup")
    assert kinds == {name for name, on in (("mixup", mixup), ("cutmix", cutmix)) if on}
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_is_mixed_where_nothing_is_asked_for() -> None:
    images, targets = pixels_of(4), torch.arange(4)
    assert mix(images, targets, 4, AugmentationConfig(), 0) == (images, targets)


def test_normalising_is_undone_for_the_eye() -> None:
    images = bytes_of(3, 8).permute(0, 3, 1, 2)
    normal = normalize(images.float() / 255)
    assert normal.min() >= -2
    assert normal.max() <= 2
    assert torch.equal(denormalize(normal), images)
