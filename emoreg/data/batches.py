"""Training batches, selected and augmented on the device: no DataLoader, no worker processes, no per-image Python.

What an epoch needs of randomness (its order, and one row of uniform numbers for each image) is drawn at its start from a
CPU generator and moved to the device in one copy. So the same seed augments alike on CPU and GPU, a step costs the host
nothing, and switching one augmentation on leaves the draws of the others as they were.

Legend: N images in the set, B in a batch, S their side, C classes, T regression targets.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from emoreg.config import AugmentationConfig
from emoreg.data.augmentation import (
    NUM_DRAWS,
    color_jitter,
    crop_and_flip,
    mix,
    normalize,
    random_erasing,
)
from emoreg.data.image_set import Split

_SHARE_OF_FREE_MEMORY = 0.5
_EVALUATION_BATCH = 512

_POWERS = {"balanced": -1.0, "sqrt": -0.5}
"""Of the size of an image's class: how often the image is drawn, or how much its loss weighs."""

Targets = Int[Tensor, " B"] | Float[Tensor, "B C"]
Batch = tuple[Float[Tensor, "B 3 S S"], Targets]


class Batches:
    """The batches of one split on one device."""

    def __init__(self, split: Split, *, device: torch.device) -> None:
        """Move the split to ``device``, or leave it on the host where it would take over half of the free device memory."""
        self.device = device
        with warnings.catch_warnings():  # the prepared file is mapped read-only, and nothing here writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            self._images = _to_device(torch.as_tensor(split.images), device)
            self._targets = torch.as_tensor(split.targets).to(device)
            self._groups = None if split.groups is None else torch.as_tensor(split.groups)

    def __len__(self) -> int:
        return len(self._targets)

    def num_steps(self, batch_size: int) -> int:
        """Steps of an epoch: the last batch may be smaller, but a single image is left out (BatchNorm needs two)."""
        full, rest = divmod(len(self), batch_size)
        return full + (rest >= 2)

    def epoch(
        self,
        batch_size: int,
        augmentation: AugmentationConfig,
        num_classes: int | None,
        draws: torch.Generator,
        *,
        first: int = 0,
        sampling: Literal["natural", "balanced", "sqrt"] = "natural",
    ) -> Iterator[Batch]:
        """One pass in random order, augmented and normalised.

        Args:
            batch_size: B.
            augmentation: what is done to the images.
            num_classes: C, or None for regression targets, which are never mixed.
            draws: a CPU generator; its state at the start decides the whole epoch.
            first: the step to begin at: the batches before it are left out, and the others are as they would have been.
            sampling: each image once, or N draws with replacement: classes equally often, or as the roots of their sizes.
        """
        order = self._order(sampling, draws)
        uniform = torch.rand((len(self), NUM_DRAWS), generator=draws)
        num_steps = self.num_steps(batch_size)
        mix_seeds = torch.randint(2**62, (num_steps,), generator=draws).tolist()
        # The images are on the device, or on the host where they did not fit.
        selected, crops = order.to(self._images.device), uniform.to(self._images.device)
        order, uniform = order.to(self.device), uniform.to(self.device)
        for step in range(first, num_steps):
            chunk = slice(step * batch_size, (step + 1) * batch_size)
            images = crop_and_flip(self._images, selected[chunk], crops[chunk], augmentation)
            pixels, u = self._pixels(images), uniform[chunk]
            pixels = random_erasing(color_jitter(pixels, u, augmentation), u, augmentation)
            targets = self._targets[order[chunk]]
            if num_classes is not None:
                pixels, targets = mix(pixels, targets, num_classes, augmentation, mix_seeds[step])
            yield normalize(pixels), targets

    def evaluation(self) -> Iterator[Batch]:
        """One pass in order, normalised and not augmented."""
        for start in range(0, len(self), _EVALUATION_BATCH):
            chunk = slice(start, start + _EVALUATION_BATCH)
            yield normalize(self._pixels(self._images[chunk].permute(0, 3, 1, 2))), self._targets[chunk]

    def pictures(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B S S 3"]:
        """Images by their places in the split, as they were prepared, on the CPU."""
        return self._images[indices.to(self._images.device)].cpu()

    def class_weights(self, kind: Literal["none", "balanced", "sqrt"], num_classes: int) -> Float[Tensor, " C"] | None:
        """What the loss of an image weighs, by class: 1 / size of the class or its root, 1 on average over the images."""
        if kind == "none":
            return None
        sizes = torch.bincount(self._targets.cpu(), minlength=num_classes).double()
        weights = torch.where(sizes > 0, sizes ** _POWERS[kind], 0.0)
        return (weights * len(self) / (sizes * weights).sum()).float().to(self.device)

    def with_permuted_targets(self, draws: torch.Generator) -> Batches:
        """The same images with their targets permuted once: the class counts stay, what the labels say does not.

        Where images belong together, those of one group that have one label have one label afterwards too: what is permuted
        are the labels of groups, and the counts stay those of groups.
        """
        permuted = copy.copy(self)
        if self._groups is None:
            permuted._targets = self._targets[torch.randperm(len(self), generator=draws).to(self.device)]
            return permuted
        targets = self._targets.cpu()
        owned = torch.cat([self._groups[:, None].double(), targets.reshape(len(self), -1).double()], dim=1)
        pairs, pair = torch.unique(owned, dim=0, return_inverse=True)
        shuffled = pairs[torch.randperm(len(pairs), generator=draws), 1:][pair]
        permuted._targets = shuffled.reshape(targets.shape).to(self._targets)
        return permuted

    def _order(self, sampling: str, draws: torch.Generator) -> Int[Tensor, " N"]:
        if sampling == "natural":
            return torch.randperm(len(self), generator=draws)
        targets = self._targets.cpu()
        chances = torch.bincount(targets)[targets].double() ** _POWERS[sampling]
        return torch.multinomial(chances, len(self), replacement=True, generator=draws)

    def _pixels(self, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        if images.device.type != self.device.type:
            images = images.pin_memory().to(self.device, non_blocking=True)  # while the device computes the last batch
        return images.float().div_(255)


def _to_device(images: UInt8[Tensor, "N S S 3"], device: torch.device) -> UInt8[Tensor, "N S S 3"]:
    if device.type != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    return images.to(device) if images.nbytes <= _SHARE_OF_FREE_MEMORY * free else images
