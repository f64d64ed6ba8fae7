"""Accuracy in bf16 against float32, paired by seed, on real images: the difference, its interval, and whether it is none.

    python -m tests.benchmarks.precision --data FOLDER [--num-seeds 20] [--margin 1.5] [--storage runs]

FOLDER holds FER2013 and CIFAR-10, as `emoreg data prepare` takes them. A run that is broken off goes on where it was, if it is
given the same storage. Two one-sided t-tests at 5 % say whether the mean difference lies within the margin (Schuirmann 1987).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from scipy import stats

import emoreg
from tests.benchmarks.common import machine


def trial(data: str, *, backbone: str = "test_resnet", train: int = 500, epochs: int = 3) -> emoreg.TrialConfig:
    """A trial of seconds, of which 1,000 images are held out."""
    augmentation = emoreg.AugmentationConfig(flip=True)
    return emoreg.TrialConfig(
        backbone=backbone,
        image_size=32,
        stimuli=emoreg.ImageSetConfig(name="fer2013", path=data, num_images=250, validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="cifar10", path=data, num_images=train, validation_fraction=0.02),
        pretraining=emoreg.PretrainingConfig(epochs=4, batch_size=64, augmentation=augmentation),
        regulation=emoreg.RegulationConfig(epochs=epochs, batch_size=64, augmentation=augmentation),
    )


def main(
    data: str,
    num_seeds: int = 20,
    backbone: str = "test_resnet",
    margin: float = 1.5,
    threads: int = 2,
    storage: str | None = None,
) -> None:
    """Train each seed in both precisions, and print the table.

    Args:
        data: folder of both image sets.
        num_seeds: each of which is trained twice.
        backbone: of the trials.
        margin: points of accuracy below which a difference counts as none.
        threads: of torch.
        storage: that keeps the trials; None for one that is gone at the end.
    """
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        base = trial(str(Path(data).resolve()), backbone=backbone)
        print("| seed | float32 | bf16 | difference, points |\n|---|---|---|---|")
        differences = []
        for seed in range(num_seeds):
            exact, mixed = (
                accuracy(dataclasses.replace(base, seed=seed, precision=precision), storage or folder)
                for precision in ("float32", "bf16")
            )
            differences.append(100 * (mixed - exact))
            print(f"| {seed} | {100 * exact:.1f} % | {100 * mixed:.1f} % | {differences[-1]:+.1f} |", flush=True)
    print(f"\n{machine()}, {backbone}: {sentence(differences, margin)}")


def accuracy(config: emoreg.TrialConfig, storage: str) -> float:
    """Validation accuracy of a trial at its end."""
    outcome = emoreg.run_trial(config, storage=storage, device="cpu")
    assert outcome.precision == config.precision
    assert outcome.val_accuracy is not None
    return outcome.val_accuracy


def sentence(differences: Sequence[float], margin: float) -> str:
    """What the differences come to."""
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    freedom = len(differences) - 1
    width = float(stats.t.ppf(0.975, freedom)) * error
    p = max(float(stats.t.sf((mean + margin) / error, freedom)), float(stats.t.cdf((mean - margin) / error, freedom)))
    said = "equivalent" if p < 0.05 else "not shown to be equivalent"
    return (
        f"bf16 - float32 is {mean:+.2f} points (95 % interval {mean - width:+.2f} to {mean + width:+.2f}, "
        f"{len(differences)} pairs), {said} within {margin:g} points (p = {p:.2g})"
    )


if __name__ == "__main__":
    tyro.cli(main)
