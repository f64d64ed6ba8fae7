"""Batches that do not fit in memory: the same arithmetic again, in smaller parts, so that the results stay the same.

Legend: B images of a batch, M of a part of it (micro-batch), S their side, C scores for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from emoreg.training.backbones import batch_statistics, hold_statistics, recompute_activations
from emoreg.training.optim import rng_state, set_rng_state

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Relief:
    """What was done because memory was too small.

    Attributes:
        micro_batch_size: M; None where whole batches fit.
        recomputed: activations are computed again in the backward pass instead of kept.
    """

    micro_batch_size: int | None = None
    recomputed: bool = False


class MicroBatches:
    """Takes batches through a network, in halves, quarters and so on where memory is too small for whole ones.

    What helps is kept for the batches that follow. The gradients of the parts, each weighted by its share of the images,
    add up to the gradient of the batch: a step stays what it was within rounding, but for what dropout and stochastic depth
    draw, which is another sample. BatchNorm in training looks at the whole batch, so with it parts would change the result:
    there activations are computed again in the backward pass instead of kept, which changes nothing, and if that is not
    enough, nothing else is tried.

    Attributes:
        relief: what was needed so far.
    """

    def __init__(self, network: nn.Module, relief: Relief | None = None) -> None:
        """Begin with ``relief``, where an earlier attempt found out that it is needed."""
        self.relief = relief if relief is not None else Relief()
        self._network = network
        if self.relief.recomputed:
            recompute_activations(network)
        self._statistics: list[list[Tensor]] | None = None  # of BatchNorm, by type; known with the first training step

    def backward(
        self,
        forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        optimizer: Optimizer,
        images: Float[Tensor, "B 3 S S"],
        targets: Tensor,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Leave the gradient of a batch's mean loss in the parameters; return that loss and the scores, detached.

        Args:
            forward: from images and targets to the mean loss over the images and their scores.
            optimizer: of the parameters, whose earlier gradients are dropped.
            images: the batch.
            targets: of the images, image by image.

        Raises:
            torch.OutOfMemoryError: nothing helped. The message says what would.
        """
        if self._statistics is None:
            found = batch_statistics(self._network)
            self._statistics = [[t for t in found if t.dtype == dtype] for dtype in {t.dtype for t in found}]
        # What an attempt changes before it fails, copied in as few operations as that takes: every step pays for it.
        before = [torch.cat([statistic.reshape(-1) for statistic in group]) for group in self._statistics]
        streams = rng_state(images.device)
        optimizer.zero_grad()
        while True:
            try:
                return self._backward(forward, images, targets)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not _is_out_of_memory(error):
                    raise
                if self._statistics:
                    self._recompute(len(images), images.device, error)
                else:
                    self._halve(len(images), images.device, error)
            # The failed attempt is undone here and not above, where the error still holds its activations.
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            for group, values in zip(self._statistics, before, strict=True):
                for statistic, value in zip(group, values.split([t.numel() for t in group]), strict=True):
                    statistic.copy_(value.view_as(statistic))
            set_rng_state(streams, images.device)

    def evaluate(self, look: Callable[[Tensor, Tensor], T], images: Float[Tensor, "B 3 S S"], targets: Tensor) -> list[T]:
        """What ``look`` makes of images and targets, for a network in evaluation mode: one answer for each part."""
        while True:
            try:
                return [look(*part) for part in self._parts(images, targets)]
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(len(images), images.device, error)
            torch.cuda.empty_cache()

    def _backward(
        self, forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, answers = [], []
        for part, its_targets in self._parts(images, targets):
            loss, scores = forward(part, its_targets)
            loss = loss * (len(part) / len(images))
            with hold_statistics(self._network) if self.relief.recomputed else nullcontext():
                loss.backward()
            losses.append(loss.detach())
            answers.append(scores.detach())
        return torch.stack(losses).sum(), torch.cat(answers)

    def _parts(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.relief.micro_batch_size or len(images)
        return zip(images.split(size), targets.split(size), strict=True)

    def _halve(self, num_images: int, device: torch.device, error: RuntimeError) -> None:
        size = min(self.relief.micro_batch_size or num_images, num_images)
        if size == 1:
            raise torch.OutOfMemoryError(
                f"one image at a time must fit in the memory of {device}, but it does not ({error}): choose a smaller backbone "
                "or image_size, or a device with more memory"
            ) from error
        half = (size + 1) // 2
        self.relief = replace(self.relief, micro_batch_size=half)
        log.warning("memory of %s: %d images are too many at once; going on with %d", device, size, half)

    def _recompute(self, num_images: int, device: torch.device, error: RuntimeError) -> None:
        if self.relief.recomputed or not recompute_activations(self._network):
            raise torch.OutOfMemoryError(
                f"BatchNorm looks at a whole batch, so that must fit in the memory of {device}, but {num_images} images do not "
                f"({error}): lower batch_size, choose a backbone without BatchNorm (a ViT), or a "
                "device with more memory"
            ) from error
        self.relief = replace(self.relief, recomputed=True)
        log.warning(
            "memory of %s: %d images are too many at once, and BatchNorm needs them all; going on with activations that are "
            "computed again in the backward pass rather than kept",
            device,
            num_images,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of PyTorch's CPU allocator, which has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
