"""Tiny trials, and what tests ask of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emoreg import checkpoint
from emoreg.backbones import Encoder
from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig, Value, replace_paths
from emoreg.imagesets import Split
from emoreg.imagesets.batches import Batches
from emoreg.records import EpochRecord, TrialResult
from emoreg.reporter import Event
from emoreg.trial import CHECKPOINT, run_trial

CPU = torch.device("cpu")

TINY = TrialConfig(
    backbone="test_resnet",
    image_size=16,
    stimuli=ImageSetConfig(name="digits", num_images=64, validation_fraction=0.02),
    task=ImageSetConfig(name="digits", num_images=80, validation_fraction=0.05, split_seed=1),
    pretraining=PretrainingConfig(epochs=1, batch_size=32, warmup_steps=2),
    regulation=RegulationConfig(epochs=2, batch_size=32),
    deterministic=True,
)

# Everything random at once: what a checkpoint must carry.
RANDOM: dict[str, Value] = {
    "drop_path": 0.2,
    "regulation.kind": "random",
    **{
        f"{stage}.augmentation.{name}": value
        for stage in ("pretraining", "regulation")
        for name, value in {"flip": True, "color_jitter": 0.3, "random_erasing": 0.5, "mixup": 0.4, "cutmix": 0.7}.items()
    },
}


class Stop(Exception):
    """What a reporter raises to end a trial."""


class Recorder:
    """Keeps the events; raises after the epoch ``stop_at`` = (stage, epoch)."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.events: list[Event] = []
        self._stop_at = stop_at

    def report(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, EpochRecord) and (event.stage, event.epoch) == self._stop_at:
            raise Stop

    def epochs(self, stage: str) -> list[EpochRecord]:
        return [event for event in self.events if isinstance(event, EpochRecord) and event.stage == stage]

    def losses(self, stage: str) -> list[float]:
        return [row.loss for row in self.epochs(stage)]

    def numbers(self) -> list[dict[str, Any]]:
        """The epochs without what a clock says."""
        rows = [asdict(event) for event in self.events if isinstance(event, EpochRecord)]
        return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def tiny(**paths: Any) -> TrialConfig:
    """TINY with values replaced by path, ``__`` for a dot."""
    return replace_paths(TINY, {path.replace("__", "."): value for path, value in paths.items()})


def run(
    config: TrialConfig, storage: Path, recorder: Recorder | None = None, *, folder: Path | None = None, **kwargs: Any
) -> tuple[TrialResult, Recorder, dict[str, Tensor]]:
    """Run a trial; its result, its events and the weights at its end."""
    recorder = recorder if recorder is not None else Recorder()
    folder = folder if folder is not None else storage / config.identity
    result = run_trial(config, recorder, storage=storage, folder=folder, device=CPU, **kwargs)
    state = checkpoint.load(folder / CHECKPOINT)
    assert state is not None
    return result, recorder, state["network"]


def experience_folders(storage: Path) -> set[str]:
    return {path.name for path in (storage / "experience").iterdir()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def linear_encoder(width: int, seed: int, image_size: int = 8) -> Encoder:
    """An encoder small enough to be followed by hand: a linear map of the mean pixels of a 2x2 grid."""
    torch.manual_seed(seed)
    return Encoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, width)), image_size)


def noise_split(num_images: int, num_classes: int = 3, size: int = 8, seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)
    return Split(images=images, targets=random.integers(0, num_classes, num_images))


def noise_batches(num_images: int, num_classes: int = 3, size: int = 8, seed: int = 0) -> Batches:
    return Batches(noise_split(num_images, num_classes, size, seed), device=CPU)
