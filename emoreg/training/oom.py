"""Batches that do not fit in memory: the same arithmetic again, in smaller parts, so that the results stay the same.

Legend: B images of a batch, M of a part of it (micro-batch), S their side, C scores for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from emoreg.results.outcome import OomState
from emoreg.training.backbones import recompute_activations
from emoreg.training.optim import rng_state, set_rng_state

T = TypeVar("T")

log = logging.getLogger(__name__)


class MicroBatches:
    """Takes batches through a network, in halves, quarters and so on if memory is too small for whole ones.

    What helps is kept for the batches that follow. The gradients of the parts, each weighted by its share of the images,
    add up to the gradient of the batch: a step stays what it was within rounding, but for what dropout and stochastic depth
    draw, which is another sample. BatchNorm in training normalises by the whole batch, so parts would change its result: there
    activations are computed again in the backward pass instead of kept, which changes nothing. If that is not enough, nothing
    else is tried.
    """

    def __init__(self, network: nn.Module, state: OomState | None = None) -> None:
        """Begin with ``state``, if an earlier attempt found out that it is needed; it is kept up to date."""
        self.state = state or OomState()
        self._network = network
        if self.state.recomputed:
            recompute_activations(network)
        self._statistics: list[list[Tensor]] | None = None  # of BatchNorm, by type; known with the first training step

    def backward(
        self,
        forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        optimizer: Optimizer,
        images: Float[Tensor, "B 3 S S"],
        targets: Tensor,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Leave the gradient of a batch's mean loss in the optimizer's parameters; return that loss and the scores, detached.

        ``forward`` takes images and targets to the mean loss over the images and their scores.

        Raises:
            torch.OutOfMemoryError: nothing helped. The message says what would.
        """
        if self._statistics is None:
            found = _batch_statistics(self._network)
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

    def evaluate(self, assess: Callable[[Tensor, Tensor], T], images: Float[Tensor, "B 3 S S"], targets: Tensor) -> list[T]:
        """Apply ``assess`` to images and targets, with the network in evaluation mode: one result for each part."""
        while True:
            try:
                return [assess(*part) for part in self._parts(images, targets)]
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(len(images), images.device, error)
            torch.cuda.empty_cache()

    def _backward(
        self, forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, all_scores = [], []
        for part, part_targets in self._parts(images, targets):
            loss, scores = forward(part, part_targets)
            loss = loss * (len(part) / len(images))
            with _hold_statistics(self._network) if self.state.recomputed else nullcontext():
                loss.backward()
            losses.append(loss.detach())
            all_scores.append(scores.detach())
        return torch.stack(losses).sum(), torch.cat(all_scores)

    def _parts(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.state.micro_batch_size or len(images)
        return zip(images.split(size), targets.split(size), strict=True)

    def _halve(self, num_images: int, device: torch.device, error: RuntimeError) -> None:
        size = min(self.state.micro_batch_size or num_images, num_images)
        if size == 1:
            raise torch.OutOfMemoryError(
                "choose a smaller backbone or image_size, or a device with more memory: one image at a time must fit in the "
                f"memory of {device}, but it does not ({error})"
            ) from error
        half = (size + 1) // 2
        self.state = replace(self.state, micro_batch_size=half)
        log.warning("memory of %s: %d images are too many at once; continuing with %d", device, size, half)

    def _recompute(self, num_images: int, device: torch.device, error: RuntimeError) -> None:
        if self.state.recomputed or not recompute_activations(self._network):
            raise torch.OutOfMemoryError(
                "lower batch_size, choose a backbone without BatchNorm (a ViT), or a device with more memory: BatchNorm needs "
                f"whole batches, but {num_images} images do not fit in the memory of {device} ({error})"
            ) from error
        self.state = replace(self.state, recomputed=True)
        log.warning(
            "memory of %s: %d images are too many at once, and BatchNorm needs them all; continuing with activations that are "
            "computed again in the backward pass rather than kept",
            device,
            num_images,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of PyTorch's CPU allocator, which has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _batch_statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics that a forward pass updates now: of every BatchNorm in training."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    return [statistic for layer in layers for statistic in layer.buffers(recurse=False)]


@contextmanager
def _hold_statistics(module: nn.Module) -> Iterator[None]:
    """Within, BatchNorm in training still normalises by the batch, but leaves its running statistics as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, num_batches_tracked) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, num_batches_tracked
