"""Steps of several networks of one architecture, one after the other and stacked in one, alternating, in processor time.

    python -m tests.benchmarks.stacked [--backbones test_resnet resnet18] [--num-networks 8] [--batch-size 8] [--rounds 5]

Stacked is what PyTorch's documentation of model ensembling does: `torch.func.stack_module_state` and `vmap`, by which the
convolutions of all networks become one grouped convolution; one fused AdamW updates all weights. BatchNorm normalises by the
batch alone, for `vmap` cannot update running statistics: that flatters the stack. Each network has images of its own. Counted
is the time of the process, with one thread, which other work on the machine disturbs little. The ratio is the best of all rows.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from emoreg.config.trial import Precision
from emoreg.formatting import counted
from emoreg.training.backbones import create_encoder
from tests.benchmarks.common import machine, spread

GOAL = 1.3
_SIDE, _NUM_CLASSES = 32, 10

Step = Callable[[], Tensor]
"""Trains all networks one step, and returns the loss of each."""


def networks(backbone: str, count: int) -> list[nn.Sequential]:
    """Networks of one architecture, each from a seed of its own."""
    encoders = [create_encoder(backbone, image_size=_SIDE, drop_path=0.0, weights=None, seed=seed) for seed in range(count)]
    return [nn.Sequential(encoder.model, nn.Linear(encoder.width, _NUM_CLASSES)).train() for encoder in encoders]


def one_by_one(nets: list[nn.Sequential], images: Tensor, targets: Tensor, precision: Precision) -> Step:
    """The step of each network by itself, images in channels_last as in training."""
    optimizers = [torch.optim.AdamW(net.parameters(), fused=True) for net in nets]
    batches = [of_one.contiguous(memory_format=torch.channels_last) for of_one in images]

    def step() -> Tensor:
        losses = []
        for net, optimizer, batch, labels in zip(nets, optimizers, batches, targets, strict=True):
            optimizer.zero_grad()
            with _autocast(precision):
                scores = net(batch)
            losses.append(F.cross_entropy(scores.float(), labels))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).detach()

    return step


def stacked(nets: list[nn.Sequential], images: Tensor, targets: Tensor, precision: Precision) -> Step:
    """The step of all networks as one."""
    copies = copy.deepcopy(nets)
    for layer in (layer for net in copies for layer in net.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    parameters, buffers = stack_module_state(copies)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    optimizer, skeleton = torch.optim.AdamW(leaves.values(), fused=True), copy.deepcopy(copies[0]).to("meta")

    def step() -> Tensor:
        optimizer.zero_grad()
        with _autocast(precision):
            scores = vmap(lambda weights, rest, batch: functional_call(skeleton, (weights, rest), (batch,)))(
                leaves, buffers, images
            )
        losses = F.cross_entropy(scores.float().flatten(0, 1), targets.flatten(), reduction="none").view(len(nets), -1).mean(1)
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return step


def main(
    backbones: tuple[str, ...] = ("test_resnet", "resnet18"),
    precisions: tuple[Precision, ...] = ("bf16", "float32"),
    num_networks: int = 8,
    batch_size: int = 8,
    rounds: int = 5,
) -> None:
    """Measure both sides, and print the table.

    Args:
        backbones: of timm, at 32 px.
        precisions: that the steps compute in.
        num_networks: that are trained.
        batch_size: images of a network's step.
        rounds: steps of both sides that are counted, after one that is not.
    """
    torch.set_num_threads(1)
    heading = f"{counted(num_networks, 'network')}, batch {batch_size} each, {counted(rounds, 'step')}"
    print(f"{machine()}, {heading}\n")
    print("| backbone | in | one by one, ms | stacked, ms | one by one / stacked |\n|---|---|---|---|---|")
    ratios = []
    for backbone in backbones:
        for precision in precisions:
            taken = measure(backbone, precision, num_networks, batch_size, rounds)
            single, together = ([1000 * seconds for seconds in side] for side in taken)
            ratios.append(statistics.median(single) / statistics.median(together))
            print(f"| {backbone} | {precision} | {spread(single, 0)} | {spread(together, 0)} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nstacked ratio={max(ratios):.2f} goal={GOAL:g}")


def measure(backbone: str, precision: Precision, count: int, batch_size: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the steps of both sides."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(count, batch_size, 3, _SIDE, _SIDE, generator=draws)
    targets = torch.randint(_NUM_CLASSES, (count, batch_size), generator=draws)
    nets = networks(backbone, count)
    sides = [build(nets, images, targets, precision) for build in (stacked, one_by_one)][::-1]
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        losses = []
        for step, seconds in zip(sides, taken, strict=True):
            begun = time.process_time()
            losses.append(step())
            if number:
                seconds.append(time.process_time() - begun)
        if number == 0:  # both have trained nothing yet
            torch.testing.assert_close(*losses, rtol=0.05, atol=0.05)
    return taken


def _autocast(precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


if __name__ == "__main__":
    tyro.cli(main)
