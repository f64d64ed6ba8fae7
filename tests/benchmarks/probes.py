"""What share of an epoch of regulation the package's own probes take, all of them after each epoch.

    python -m tests.benchmarks.probes [--data ../shared/data] [--rounds 3] [--epochs 2] [--num-images 5000]

They look at 256 images of the task and a few stimuli, whatever the epoch has: the more images, the smaller their share.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro

import emoreg
from emoreg.formatting import counted
from emoreg.training import loop
from emoreg.training.stages import Stage
from studies.answer import study
from tests.benchmarks.common import machine, spread

GOAL = 0.03
PROBES = ("agreement", "emotion_share", "usable_information", "cka", "affect")


def config(data: Path | None, epochs: int, num_images: int) -> emoreg.TrialConfig:
    """The trial of the answer as configured, with one epoch of pre-training; without ``data`` on images that are at hand."""
    base = study.config.trial
    stimuli = emoreg.ImageSetConfig(name="openmoji")
    task = emoreg.ImageSetConfig(name="digits", num_images=num_images)
    if data is not None:
        stimuli = dataclasses.replace(base.stimuli, path=str(data))
        task = dataclasses.replace(base.task, path=str(data), num_images=num_images)
    return dataclasses.replace(
        base,
        stimuli=stimuli,
        task=task,
        probes=PROBES,
        pretraining=dataclasses.replace(base.pretraining, epochs=1, cooldown_epochs=0),
        regulation=dataclasses.replace(base.regulation, epochs=epochs),
    )


def main(data: Path | None = None, rounds: int = 3, epochs: int = 2, num_images: int = 5000) -> None:
    """Measure trials, and print the table.

    Args:
        data: folder of FER2013's and CIFAR-10's files; None: OpenMoji and digits.
        rounds: trials, each of a seed of its own.
        epochs: of regulation in each.
        num_images: of the task, to train on.
    """
    torch.set_num_threads(1)
    base = config(data, epochs, num_images)
    shares, seconds, run_probes = [], list[float](), loop.run_probes

    def look(stage: Stage, *others: Any) -> Any:
        begun = time.perf_counter()
        found = run_probes(stage, *others)
        if stage.name == "regulation":  # in pre-training there is but one encoder to look at
            seconds.append(time.perf_counter() - begun)
        return found

    with tempfile.TemporaryDirectory() as storage, mock.patch.object(loop, "run_probes", look):
        for seed in range(rounds):
            outcome = emoreg.run_trial(dataclasses.replace(base, seed=seed), storage=storage, device="cpu")
            shares.append(sum(seconds[-epochs:]) / outcome.regulation_seconds)
    print(f"{machine()}, 1 thread, {base.backbone} at {base.image_size} px, {counted(rounds, 'trial')}\n")
    print("| images of an epoch | seconds of all probes, once | % of an epoch |\n|---|---|---|")
    print(f"| {num_images:,} | {spread(seconds, 2)} | {spread([100 * share for share in shares], 1)} |")
    print(f"\nprobes ratio={statistics.median(shares):.4f} goal={GOAL:g}")


if __name__ == "__main__":
    tyro.cli(main)
