"""Trials at once, a core each, against one at a time on all cores; alternating.

    python -m tests.benchmarks.packing [--num-trials 4] [--backbone test_resnet] [--rounds 3]

The same trials of a study, which learn digits at 32 px without pre-training. Counted from when the first trial begins until
the last one has ended, so that neither side pays for Ray's start. The ratio is one at a time by all at once: where it is below
1, `resources.cpus_per_trial` should be raised above its default of 1. On a busy machine threads that wait for each other lose
most, which flatters trials of one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path

import tyro

import emoreg
from emoreg.formatting import counted
from tests.benchmarks.common import machine, run_alone, seconds_between, spread

GOAL = 1.0


def study(
    storage: str, *, cpus: int, num_trials: int = 4, backbone: str = "test_resnet", epochs: int = 4, num_images: int = 500
) -> emoreg.Study:
    """The study of a side.

    Args:
        storage: of the study.
        cpus: of each trial, and its threads.
        num_trials: of the search.
        backbone: of the trials.
        epochs: of each trial.
        num_images: that a trial trains on.
    """
    digits = emoreg.ImageSetConfig(name="digits", num_images=num_images, validation_fraction=0.2)
    return emoreg.Study(
        f"packing{cpus}",
        storage=storage,
        trial=emoreg.TrialConfig(
            backbone=backbone,
            stimuli=digits,
            task=digits,
            regulation=emoreg.RegulationConfig(epochs=epochs, batch_size=64),
            control="untrained",
        ),
        search_space={"regulation.balance": emoreg.Float(0.1, 0.9)},
        num_trials=num_trials,
        sampler=emoreg.SamplerConfig(name="random"),
        controls=(),
        resources=emoreg.ResourcesConfig(cpus_per_trial=cpus),
    )


def run(storage: str, cpus: int, num_trials: int, backbone: str, epochs: int, num_images: int) -> None:
    """Run a side, and print its seconds."""
    ran = study(storage, cpus=cpus, num_trials=num_trials, backbone=backbone, epochs=epochs, num_images=num_images).run()
    trials = [trial for trial in ran.trials if trial.status == "finished"]
    assert len(trials) == num_trials
    print(json.dumps(seconds_between(min(trial.started for trial in trials), max(trial.ended for trial in trials))))


def main(num_trials: int = 4, backbone: str = "test_resnet", epochs: int = 4, num_images: int = 500, rounds: int = 3) -> None:
    """Measure both sides, and print the table.

    Args:
        num_trials: of each side.
        backbone: of the trials.
        epochs: of each trial.
        num_images: that a trial trains on.
        rounds: of both sides, alternating.
    """
    cores = len(os.sched_getaffinity(0))
    taken: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(rounds):
        for cpus, seconds in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                settings = (str(Path(folder).resolve()), cpus, num_trials, backbone, epochs, num_images)
                output = run_alone(f"from {__spec__.name} import run; run(*{settings!r})")
            seconds.append(json.loads(output.splitlines()[-1]))
    print(f"{machine()}, {backbone}, {counted(num_trials, 'trial')} a side, {counted(rounds, 'round')}\n")
    print("| trials at once | threads each | seconds |\n|---|---|---|")
    for cpus, seconds in taken.items():
        print(f"| {cores // cpus} | {cpus} | {spread(seconds)} |")
    print(f"\npacking ratio={statistics.median(taken[cores]) / statistics.median(taken[1]):.2f} goal={GOAL:g}")


if __name__ == "__main__":
    tyro.cli(main)
