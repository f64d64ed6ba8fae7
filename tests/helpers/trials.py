"""Tiny trials, and what tests ask of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig, Value, replace_paths
from emoreg.data import Split, load
from emoreg.data.batches import Batches
from emoreg.errors import Interrupted
from emoreg.results.records import EpochRecord, TrialResult
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import State
from emoreg.training.backbones import Encoder
from emoreg.training.events import Event
from emoreg.training.experience import ExperienceStore
from emoreg.training.trial import CHECKPOINT, run_trial

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


class States:
    """A keeper that takes a copy of what it is given: after every epoch, and after every step that it is asked to."""

    def __init__(self, *, every_step: bool = False) -> None:
        self.states: list[State] = []
        self._every_step = every_step

    def due(self) -> bool:
        return self._every_step

    def keep(self, state: State) -> None:
        self.states.append(copy.deepcopy(state))  # it holds the living weights


class StopEveryStep:
    """A keeper that ends the loop after every step, and after every epoch, with its state."""

    state: State | None = None

    def due(self) -> bool:
        return True

    def keep(self, state: State) -> None:
        self.state = copy.deepcopy(state)
        raise Interrupted


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
        return [timeless(asdict(event)) for event in self.events if isinstance(event, EpochRecord)]


def timeless(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A record or a state without what a clock says."""
    return {key: value for key, value in row.items() if "second" not in str(key)}


def tiny(**paths: Any) -> TrialConfig:
    """TINY with values replaced by path, ``__`` for a dot."""
    return replace_paths(TINY, {path.replace("__", "."): value for path, value in paths.items()})


def run(
    config: TrialConfig, storage: Path, recorder: Recorder | None = None, *, folder: Path | None = None, **kwargs: Any
) -> tuple[TrialResult, Recorder, dict[str, Tensor]]:
    """Run a trial; its result, its events and the weights at its end."""
    recorder = recorder if recorder is not None else Recorder()
    folder = folder if folder is not None else storage / config.identity
    store = ExperienceStore(str(storage / "experience"))
    load_images = partial(load, storage=storage)
    result = run_trial(config, recorder, load_images=load_images, store=store, folder=folder, device=CPU, **kwargs)
    state = checkpoint.load(folder / CHECKPOINT)
    assert state is not None
    return result, recorder, state["network"]


def experience_folders(storage: Path) -> set[str]:
    return {path.parent.name for path in (storage / "experience").glob("*/*.ckpt")}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def same(first: Any, second: Any) -> bool:
    """Whether two states, however nested, are the same to the bit, but for what a clock says."""
    if isinstance(first, dict):
        first, second = timeless(first), timeless(second)
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


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
