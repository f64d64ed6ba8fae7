"""Tiny trials, and what tests ask of them."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig, Value, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.data import Split, load
from emoreg.data.batches import Batches
from emoreg.data.image_set import ImageSet
from emoreg.results.outcome import Outcome
from emoreg.results.records import EpochRecord
from emoreg.results.records import Stage as StageName
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import CHECKPOINT, State
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.training.backbones import Encoder
from emoreg.training.checkpointing import Checkpointer
from emoreg.training.context import TrialContext
from emoreg.training.events import Event
from emoreg.training.history import History
from emoreg.training.learners import Learner
from emoreg.training.loop import Fitted, fit
from emoreg.training.stages import Stage, pretraining_stage, regulation_stage
from emoreg.training.trial import run_trial

CPU = torch.device("cpu")

TINY = TrialConfig(
    backbone="test_resnet",
    image_size=16,
    stimuli=ImageSetConfig(name="digits", num_images=16, validation_fraction=0.02),
    task=ImageSetConfig(name="digits", num_images=20, validation_fraction=0.02, split_seed=1),
    pretraining=PretrainingConfig(epochs=1, batch_size=8, warmup_steps=2),
    regulation=RegulationConfig(epochs=2, batch_size=8),
    deterministic=True,
)

# The sizes with which keys and losses are written down in tests.
WRITTEN_DOWN: dict[str, Value] = {
    "stimuli.num_images": 64,
    "task.num_images": 80,
    "task.validation_fraction": 0.05,
    "pretraining.batch_size": 32,
    "regulation.batch_size": 32,
}

# Everything random at once: what a checkpoint must carry.
RANDOM: dict[str, Value] = {
    "drop_path": 0.2,
    "regulation.kind": "random",
    "pretraining.sampling": "sqrt",
    "regulation.sampling": "balanced",
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
        return [row.train_loss for row in self.epochs(stage)]

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
    config: TrialConfig,
    storage: Path,
    recorder: Recorder | None = None,
    *,
    folder: Path | None = None,
    store: ExperienceStore | None = None,
    **kwargs: Any,
) -> tuple[Outcome, Recorder, dict[str, Tensor]]:
    """Run a trial; its outcome, its events and the weights at its end."""
    trial = resolve_trial(config)
    recorder = recorder if recorder is not None else Recorder()
    folder = folder if folder is not None else storage / trial.identity
    context = TrialContext(
        load_images=partial(load, storage=storage),
        store=store if store is not None else ExperienceStore(str(storage / "experience")),
        folder=folder,
        device=CPU,
        **kwargs,
    )
    outcome = run_trial(trial, context, recorder)
    state = load_state(folder / CHECKPOINT)
    return outcome, recorder, state["network"] if state is not None else {}


def load_state(path: Path) -> State | None:
    """The state in a file, or None where there is none."""
    return checkpoint.load(Files(str(path.parent)), path.name)


def bytes_of(state: State) -> bytes:
    """What a file holds of a state."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Files(folder), "a.ckpt", state)
        return (Path(folder) / "a.ckpt").read_bytes()


def identity_of(config: TrialConfig) -> str:
    return resolve_trial(config).identity


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


def noise_set(split: Split, *, test: Split | None = None, num_outputs: int = 3, regression: bool = False) -> ImageSet:
    names = tuple("abcdefgh"[:num_outputs])
    test = noise_split(10, seed=99) if test is None else test
    return ImageSet(name="noise", class_names=names, regression=regression, fingerprint="f", train=split, test=test, summary={})


def stage_of(
    name: StageName,
    config: TrialConfig,
    train: Batches,
    validation: Batches | None = None,
    *,
    num_outputs: int = 3,
    regression: bool = False,
) -> Stage:
    """A stage on these images."""
    images = noise_set(noise_split(100), num_outputs=num_outputs)
    make = pretraining_stage if name == "pretraining" else regulation_stage
    stage = make(resolve_trial(config), lambda source, *, image_size: images, CPU)
    image_set = replace(images, regression=regression)
    return replace(stage, image_set=image_set, train=train, validation=validation)


def train(
    stage: Stage,
    learner: Learner,
    *,
    latest: State | None = None,
    every_step: bool = False,
    states: list[State] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Fitted, list[State], Recorder]:
    """Fit; what it gave, the states after every epoch and, if asked, after every step, and the events.

    ``states`` takes the states also where the loop is stopped.
    """
    states, recorder = states if states is not None else [], Recorder()
    taken = states

    def take(state: State, is_kept: bool) -> None:
        taken.append(copy.deepcopy(state))  # the writer uses the memory again

    with Checkpointer(
        latest=latest,
        history=History("", stage.trial.identity, [recorder]),
        keeps=lambda epoch: True,
        write=take,
        seconds=0.0 if every_step else math.inf,
        should_stop=should_stop,
    ) as checkpointer:
        fitted = fit(stage, learner, checkpointer=checkpointer)
    return fitted, states, recorder


class Poisoned(Batches):
    """Batches whose images turn to NaN at a step; counts the steps taken."""

    at, taken = 0, 0

    def epoch(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in super().epoch(*args, **kwargs):
            bad = self.taken >= self.at
            self.taken += 1
            yield (images * float("nan") if bad else images), targets


def poisoned_batches(num_images: int, at: int) -> Poisoned:
    batches = Poisoned(noise_split(num_images), device=CPU)
    batches.at = at
    return batches
