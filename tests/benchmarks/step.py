"""A training step: PyTorch's own loop against ours, alternating, for each backbone; and ours of two encoders against one.

    python -m tests.benchmarks.step [--backbones resnet18 vit_tiny] [--batches 6] [--rounds 5] [--threads 2]

The plain loop is what PyTorch's, torchvision's and timm's documentation lead to: a ``Dataset`` of PIL images with torchvision's
transforms, a shuffling ``DataLoader`` with two persistent workers, float32, AdamW, clipped gradients. Ours is ``fit`` with the
defaults of a study: images, order, augmentation, network, batch size and optimizer are the same. Both train on 32 px images.

The ratio of the last line is the lowest of all ratios over their goals: 1 reaches all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from emoreg.config import AugmentationConfig, RegulationConfig, TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.data.batches import Batches
from emoreg.data.image_set import Split
from emoreg.formatting import counted
from emoreg.training.backbones import create_encoder
from emoreg.training.learners import RegulationLearner
from emoreg.training.model import create_emotional_net, create_regulation
from emoreg.training.precision import settle
from tests.benchmarks.common import machine, spread
from tests.helpers.trials import CPU, stage_of, train

GOALS = {"test_resnet": 4.0, "resnet18": 2.3, "vit_tiny": 2.9, "test_vit": 1.6}
"""Images a second of ours, by those of the plain loop."""
TWO_ENCODERS = 1.7
"""Seconds of a step of two encoders at most, by those of one."""
_SIDE, _NUM_CLASSES = 32, 8

Epoch = Callable[[], float]
"""Trains an epoch and returns its images a second."""


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR10 has and gives them."""

    def __init__(self, split: Split) -> None:
        from torchvision import transforms  # after emoreg, which mends its import beside a CPU build of torch

        self.data, self.targets = split.images, split.targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(_SIDE, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


@dataclass
class Case:
    """What is measured of a backbone: images a second of the plain loop, and of ours with one and two encoders."""

    backbone: str
    precision: str
    plain: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    two: list[float] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How many times as fast as the plain loop ours is."""
        return statistics.median(self.one) / statistics.median(self.plain)

    @property
    def price(self) -> float:
        """How many times as long a step of two encoders takes."""
        return statistics.median(self.one) / statistics.median(self.two)


def main(
    backbones: tuple[str, ...] = tuple(GOALS), batches: int = 6, batch_size: int = 128, rounds: int = 5, threads: int = 2
) -> None:
    """Measure steps, and print the table.

    Args:
        backbones: of timm, or registered.
        batches: of an epoch.
        batch_size: images of a step.
        rounds: epochs of each side that are counted, after one that is not.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    cases = [measure(backbone, batches, batch_size, rounds) for backbone in backbones]
    print(f"{machine()}, {counted(threads, 'thread')}, {_SIDE} px, batch {batch_size}, {counted(rounds, 'epoch')} each\n")
    print(
        "| backbone | plain, images/s | ours, images/s | in | ours / plain | goal | two encoders, images/s | two / one | goal |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        print(
            f"| {case.backbone} | {spread(case.plain)} | {spread(case.one)} | {case.precision} | {case.gain:.2f} | "
            f"{GOALS.get(case.backbone, 1.0):g} | {spread(case.two)} | {case.price:.2f} | {TWO_ENCODERS:g} |"
        )
    reached = [case.gain / GOALS.get(case.backbone, 1.0) for case in cases] + [TWO_ENCODERS / case.price for case in cases]
    print(f"\nstep ratio={min(reached):.2f} goal=1")


def measure(backbone: str, batches: int, batch_size: int, rounds: int) -> Case:
    """The sides of a backbone, one epoch after the other."""
    random = np.random.default_rng(0)
    size = batches * batch_size
    images = random.integers(0, 256, (size, _SIDE, _SIDE, 3), dtype=np.uint8)
    split = Split(images=images, targets=random.integers(0, _NUM_CLASSES, size))
    one, precision = ours(backbone, split, batch_size, balance=0.0)
    two, _ = ours(backbone, split, batch_size, balance=0.5)
    case, sides = Case(backbone, precision), (plain(backbone, split, batch_size), one, two)
    for number in range(1 + rounds):
        for measured, epoch in zip((case.plain, case.one, case.two), sides, strict=True):
            speed = epoch()
            if number:
                measured.append(speed)
    return case


def plain(backbone: str, split: Split, batch_size: int) -> Epoch:
    """The loop of PyTorch's tutorials."""
    encoder = create_encoder(backbone, image_size=_SIDE, drop_path=0.0, weights=None, seed=0)
    model = nn.Sequential(encoder, nn.Linear(encoder.width, _NUM_CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    loader = DataLoader(Pictures(split), batch_size=batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch() -> float:
        started = time.perf_counter()
        model.train()
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            running_loss += loss.item()
        return len(split) / (time.perf_counter() - started)

    return epoch


def ours(backbone: str, split: Split, batch_size: int, *, balance: float) -> tuple[Epoch, str]:
    """``fit``, an epoch at a time, and the precision that it computes in."""
    regulation = RegulationConfig(balance=balance, epochs=1, batch_size=batch_size, augmentation=AugmentationConfig(flip=True))
    trial = settle(resolve_trial(TrialConfig(backbone=backbone, image_size=_SIDE, regulation=regulation)), CPU, {})
    emotional = create_emotional_net(trial.config, _NUM_CLASSES) if balance else None
    learner = RegulationLearner(trial.config, create_regulation(trial.config, emotional, _NUM_CLASSES))
    stage = stage_of("regulation", trial.config, Batches(split, device=CPU), num_outputs=_NUM_CLASSES)

    def epoch() -> float:
        _, _, recorder = train(stage, learner)
        return recorder.epochs("regulation")[0].images_per_second

    return epoch, trial.config.precision


if __name__ == "__main__":
    tyro.cli(main)
