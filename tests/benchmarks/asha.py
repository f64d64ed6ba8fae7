"""ASHA against FIFO: the epochs that the same search trains, and the best that it finds; alternating.

    python -m tests.benchmarks.asha [--data FOLDER] [--num-trials 32] [--epochs 9] [--rounds 3]

Both search balance, learning rate and weight decay of test_resnet with the same sampler, which proposes at random (one that
learns would propose otherwise to each), so that every trial is the same until ASHA stops it; they share one pre-training.
Epochs are those of regulation, which is what ASHA compares. FOLDER holds FER2013 and CIFAR-10, as `emoreg data prepare` takes
them; without it OpenMoji's faces and handwritten digits stand in, whose accuracies say less.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import tyro

import emoreg
from emoreg.formatting import counted
from tests.benchmarks.common import machine, run_alone, spread

GOAL = 3.0
"""Epochs without a scheduler, by those of ASHA."""
GOAL_POINTS = -0.3
"""The best validation accuracy with ASHA, less that without, in percentage points."""
SCHEDULERS = ("none", "asha")


def study(
    storage: str,
    *,
    scheduler: str,
    num_trials: int = 32,
    epochs: int = 9,
    data: str | None = None,
    num_images: int = 500,
    seed: int = 0,
) -> emoreg.Study:
    """The study of a side.

    Args:
        storage: of the study.
        scheduler: what stops trials early.
        num_trials: of the search.
        epochs: of regulation, that a trial has which is never stopped.
        data: folder of FER2013 and CIFAR-10; None for the images that come with emoreg.
        num_images: of the task.
        seed: of the trials and of what is proposed.
    """
    augmentation = emoreg.AugmentationConfig(flip=data is not None)
    stimuli = emoreg.ImageSetConfig(name="openmoji", num_images=250, validation_fraction=0.0)
    task = emoreg.ImageSetConfig(name="digits", num_images=num_images, validation_fraction=0.3)
    if data is not None:
        stimuli = emoreg.ImageSetConfig(name="fer2013", path=data, num_images=250, validation_fraction=0.0)
        task = emoreg.ImageSetConfig(name="cifar10", path=data, num_images=num_images, validation_fraction=0.02)
    return emoreg.Study(
        f"{scheduler}{seed}",
        storage=storage,
        trial=emoreg.TrialConfig(
            backbone="test_resnet",
            image_size=32 if data is not None else 16,
            stimuli=stimuli,
            task=task,
            pretraining=emoreg.PretrainingConfig(epochs=4, batch_size=64, augmentation=augmentation),
            regulation=emoreg.RegulationConfig(epochs=epochs, batch_size=64, augmentation=augmentation),
            seed=seed,
        ),
        search_space={
            "regulation.balance": emoreg.Float(0.05, 0.95),
            "regulation.optimizer.learning_rate": emoreg.Float(1e-4, 3e-2, log=True),
            "regulation.optimizer.weight_decay": emoreg.Float(1e-3, 0.3, log=True),
        },
        num_trials=num_trials,
        sampler=emoreg.SamplerConfig(name="random", seed=seed),
        scheduler=emoreg.SchedulerConfig(name=scheduler),
        controls=(),
    )


def run(storage: str, scheduler: str, num_trials: int, epochs: int, data: str | None, num_images: int, seed: int) -> None:
    """Run a side, and print its epochs and its best."""
    ran = study(
        storage, scheduler=scheduler, num_trials=num_trials, epochs=epochs, data=data, num_images=num_images, seed=seed
    ).run()
    print(json.dumps(result(ran)))


def result(ran: emoreg.Study) -> tuple[int, float]:
    """The epochs of regulation that a study has trained, and its best validation accuracy."""
    return sum(trial.regulation_epochs or 0 for trial in ran.trials), ran.best["test_resnet"].val_accuracy


def main(num_trials: int = 32, epochs: int = 9, num_images: int = 500, rounds: int = 3, data: str | None = None) -> None:
    """Run both sides, and print the table.

    Args:
        num_trials: of each side.
        epochs: of regulation, at most.
        num_images: of the task that are trained on.
        rounds: of both sides, alternating, each of a seed of its own.
        data: folder of FER2013 and CIFAR-10; None for the images that come with emoreg.
    """
    home = None if data is None else str(Path(data).resolve())
    found: dict[str, list[tuple[int, float]]] = {scheduler: [] for scheduler in SCHEDULERS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            for scheduler, results in found.items():
                settings = (folder, scheduler, num_trials, epochs, home, num_images, seed)
                output = run_alone(f"from {__spec__.name} import run; run(*{settings!r})")
                results.append(tuple(json.loads(output.splitlines()[-1])))
    print(f"{machine()}, {counted(num_trials, 'trial')} a side, {counted(rounds, 'round')}\n")
    print(table(found))


def table(found: dict[str, list[tuple[int, float]]]) -> str:
    """What was found, as a table with the ratios below it."""
    lines = ["| scheduler | epochs of regulation | best validation accuracy, % |", "|---|---|---|"]
    for scheduler, results in found.items():
        epochs, best = [float(count) for count, _ in results], [100 * accuracy for _, accuracy in results]
        lines.append(f"| {scheduler} | {spread(epochs, 0)} | {spread(best)} |")
    fifo, asha = found.values()
    points = statistics.median(100 * (ours[1] - theirs[1]) for ours, theirs in zip(asha, fifo, strict=True))
    ratio = statistics.median(theirs[0] / ours[0] for ours, theirs in zip(asha, fifo, strict=True))
    return "\n".join([*lines, "", f"asha points={points:+.2f} goal={GOAL_POINTS}", f"asha ratio={ratio:.2f} goal={GOAL:g}"])


if __name__ == "__main__":
    tyro.cli(main)
