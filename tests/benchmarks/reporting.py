"""What share of a trial goes into telling of it: events, checkpoints, predictions, as a study's trial does, in this process.

    python -m tests.benchmarks.reporting [--rounds 5] [--epochs 8] [--num-images 1000]

Records are the driver's work, which `many_trials` measures: beside this process, and not in a trial's time.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro

from emoreg.config import ImageSetConfig, TrialConfig
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.formatting import counted
from emoreg.tracking.tensorboard import TensorBoardReporter
from emoreg.training import trial as trial_module
from emoreg.training.checkpointing import Checkpointer
from emoreg.training.context import TrialContext
from emoreg.training.trial import run_trial
from studies.quickstart import study
from tests.benchmarks.common import machine, spread

GOAL = 0.01
_TOLD: dict[str, tuple[Any, str]] = {
    "events": (TensorBoardReporter, "report"),
    "checkpoints": (Checkpointer, "save"),
    "predictions": (trial_module, "write_predictions"),
}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Within, the seconds that are spent in each part of what is told."""
    spent: dict[str, float] = defaultdict(float)

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - begun

        return call

    with ExitStack() as after:
        for name, (owner, function) in _TOLD.items():
            after.enter_context(mock.patch.object(owner, function, around(name, getattr(owner, function))))
        yield spent


def measure(trial: ResolvedTrial, images: Path) -> dict[str, float]:
    """The share of each part in the trial's time."""
    with tempfile.TemporaryDirectory() as folder:
        context = dataclasses.replace(
            TrialContext.local(trial, storage=folder), load_images=TrialContext.local(trial, storage=images).load_images
        )
        begun = time.perf_counter()
        with timed() as spent, TensorBoardReporter(Path(folder), trial, {}) as events:
            run_trial(trial, context, events)
        seconds = time.perf_counter() - begun
    return {name: spent[name] / seconds for name in _TOLD} | {"seconds": seconds}


def config(epochs: int, num_images: int) -> TrialConfig:
    """The quickstart's control with two encoders and no pre-training, on more digits."""
    base = study.config.trial
    digits = ImageSetConfig(name="digits", num_images=num_images, validation_fraction=0.25)
    regulation = dataclasses.replace(base.regulation, epochs=epochs)
    return dataclasses.replace(base, task=digits, stimuli=digits, control="untrained", regulation=regulation)


def main(rounds: int = 5, epochs: int = 8, num_images: int = 1000, storage: str | None = None) -> None:
    """Measure a trial, and print the table.

    Args:
        rounds: trials, each of a seed of its own, after one that prepares the images.
        epochs: of regulation.
        num_images: of the task.
        storage: folder whose image sets are prepared already; None for one that is gone afterwards.
    """
    torch.set_num_threads(1)
    base = config(epochs, num_images)
    with nullcontext(storage) if storage else tempfile.TemporaryDirectory() as images:
        found = [measure(resolve_trial(dataclasses.replace(base, seed=seed)), Path(images)) for seed in range(rounds + 1)][1:]
    shares = {name: [100 * row[name] for row in found] for name in _TOLD}
    taken = spread([row["seconds"] for row in found])
    print(f"{machine()}, {counted(rounds, 'trial')} of {taken} s\n\n| told | % of the trial |\n|---|---|")
    for name, values in shares.items():
        print(f"| {name} | {spread(values, 2)} |")
    whole = statistics.median(sum(row[name] for name in _TOLD) for row in found)
    print(f"\nreporting ratio={whole:.4f} goal={GOAL:g}")


if __name__ == "__main__":
    tyro.cli(main)
