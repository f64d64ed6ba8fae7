"""Augmentations of a whole batch with parameters of each image's own.

torchvision.transforms.v2 draws one set of parameters for a whole batch, so cropping, jitter and erasing are written here;
MixUp and CutMix, which are made for batches, are torchvision's own.

Legend: N images in the set, B in a batch, S their side, U uniform draws for each image (columns named below), C classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from emoreg.config import AugmentationConfig
from emoreg.seeding import global_stream

# Columns of the uniform draws.
_CROP_Y, _CROP_X, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _ERASE, _AREA, _ASPECT, _ERASE_Y, _ERASE_X = range(11)
_ERASE_COLOR = slice(11, 14)
NUM_DRAWS = 14
"""U: uniform numbers that an image's augmentation takes."""
MEAN, STD = 0.5, 0.25
"""By which pixels in [0, 1] are normalised."""

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_GREY = (0.2989, 0.587, 0.114)  # torchvision's


def normalize(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Bring pixels in [0, 1] to about zero mean and unit variance, alike for stimuli and task: one encoder sees both."""
    return (images - MEAN) / STD


def denormalize(images: Float[Tensor, "B 3 S S"]) -> UInt8[Tensor, "B 3 S S"]:
    """Bring normalised pixels back to bytes, to be looked at."""
    return (images * STD + MEAN).clamp(0, 1).mul(255).round().to(torch.uint8)


def crop_and_flip(
    images: UInt8[Tensor, "N S S 3"],
    indices: Int[Tensor, " B"],
    uniform: Float[Tensor, "B U"],
    config: AugmentationConfig,
) -> UInt8[Tensor, "B 3 S S"]:
    """Select images, cropped at random from their reflected padding and mirrored: all of it in one gather."""
    side, padding = images.shape[1], config.crop_padding
    offsets = (uniform[:, [_CROP_Y, _CROP_X]] * (2 * padding + 1)).long() - padding
    grid = torch.arange(side, device=images.device)
    rows = _reflect(offsets[:, :1] + grid, side)
    columns = grid.expand(len(indices), side)
    if config.flip:
        columns = torch.where(uniform[:, _FLIP, None] < 0.5, columns.flip(1), columns)
    columns = _reflect(offsets[:, 1:] + columns, side)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def color_jitter(
    images: Float[Tensor, "B 3 S S"], uniform: Float[Tensor, "B U"], config: AugmentationConfig
) -> Float[Tensor, "B 3 S S"]:
    """Change brightness, contrast and saturation by factors from U(1 - s, 1 + s), as torchvision defines them."""
    if config.color_jitter == 0:
        return images
    factors = 1 + config.color_jitter * (2 * uniform[:, _BRIGHTNESS : _SATURATION + 1] - 1)
    brightness, contrast, saturation = (factor.reshape(-1, 1, 1, 1) for factor in factors.unbind(1))
    weights = torch.tensor(_GREY, device=images.device).reshape(1, 3, 1, 1)
    images = (images * brightness).clamp(0, 1)
    mean_grey = (images * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean_grey, images, contrast).clamp(0, 1)
    grey = (images * weights).sum(dim=1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp(0, 1)


def random_erasing(
    images: Float[Tensor, "B 3 S S"], uniform: Float[Tensor, "B U"], config: AugmentationConfig
) -> Float[Tensor, "B 3 S S"]:
    """Replace a rectangle by one random colour (Zhong et al. 2020: area 2 % to 1/3, aspect 0.3 to 3.3)."""
    if config.random_erasing == 0:
        return images
    side = images.shape[-1]
    smallest, largest = _ERASED_AREA
    area = smallest + (largest - smallest) * uniform[:, _AREA]
    low, high = (math.log(end) for end in _ERASED_ASPECT)
    root = torch.exp((low + (high - low) * uniform[:, _ASPECT]) / 2)
    grid = torch.arange(side, device=images.device)
    inside = []
    for length, where in ((area.sqrt() * root, _ERASE_Y), (area.sqrt() / root, _ERASE_X)):
        extent = (length * side).round().clamp(1, side)
        start = (uniform[:, where] * (side - extent + 1)).floor()
        inside.append((grid >= start[:, None]) & (grid < (start + extent)[:, None]))
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    mask &= (uniform[:, _ERASE] < config.random_erasing)[:, None, None, None]
    return torch.where(mask, uniform[:, _ERASE_COLOR, None, None], images)


def mix(
    images: Float[Tensor, "B 3 S S"], targets: Int[Tensor, " B"], num_classes: int, config: AugmentationConfig, seed: int
) -> tuple[Float[Tensor, "B 3 S S"], Int[Tensor, " B"] | Float[Tensor, "B C"]]:
    """MixUp or CutMix by torchvision; targets become class probabilities. One of the two is drawn where both are on."""
    if config.mixup == 0 and config.cutmix == 0:
        return images, targets
    from torchvision.transforms import v2  # takes a while to import

    choices: list[v2.Transform] = []
    if config.mixup > 0:
        choices.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix > 0:
        choices.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    with global_stream(seed):  # v2 draws from the global stream, which belongs to dropout
        mixed: tuple[Tensor, Tensor] = v2.RandomChoice(choices)(images, targets)
    return mixed


def _reflect(index: Int[Tensor, "B S"], side: int) -> Int[Tensor, "B S"]:
    """Indices outside [0, side) mirrored at the borders, which are not repeated."""
    index = index.abs()
    return (side - 1 - (side - 1 - index).abs()).clamp(0, side - 1)
