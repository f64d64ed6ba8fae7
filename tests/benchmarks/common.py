"""What several benchmarks use: medians, a process of its own, a study whose trials do next to nothing."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import torch
from torch import nn

import emoreg


def machine() -> str:
    """What a table's heading says of the machine."""
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}, Ray {ray.__version__}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the lowest and the highest value where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def seconds_between(first: str, last: str) -> float:
    """Seconds between two times of the records."""
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def run_alone(code: str, environment: Mapping[str, str] | None = None) -> str:
    """Run Python code in a process of its own; what it printed."""
    command, variables = [sys.executable, "-c", code], {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=variables, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def idle_study(
    folder: str, *, num_trials: int, at_once: int, cpus: float, epochs: int = 1, seconds: float = 0.0
) -> emoreg.Study:
    """A study whose trials wait for each other, then train for milliseconds and sleep; all else is done as in every study.

    Args:
        folder: storage of the study, and of what the trials wait by: they share this machine.
        num_trials: of a random search.
        at_once: workers that have ended an epoch before any goes on.
        cpus: that each trial asks of Ray.
        epochs: of each trial.
        seconds: that a trial sleeps after each epoch.
    """
    begun = Path(folder).resolve() / "begun"
    begun.mkdir()

    @emoreg.backbone("idle")
    def idle(image_size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 8))

    @emoreg.probe("idle")
    def wait_and_sleep(*of_the_trial: Any) -> dict[str, float]:
        (begun / str(os.getpid())).touch()
        while len(os.listdir(begun)) < at_once:
            time.sleep(0.5)
        time.sleep(seconds)
        return {}

    digits = emoreg.ImageSetConfig(name="digits", num_images=40)
    return emoreg.Study(
        "idle",
        storage=folder,
        trial=emoreg.TrialConfig(
            backbone="idle",
            image_size=8,
            stimuli=digits,
            task=digits,
            regulation=emoreg.RegulationConfig(epochs=epochs),
            control="untrained",
            probes=("idle",),
        ),
        search_space={"regulation.balance": emoreg.Float(0.1, 0.9)},
        num_trials=num_trials,
        sampler=emoreg.SamplerConfig(name="random"),
        controls=(),
        resources=emoreg.ResourcesConfig(cpus_per_trial=cpus),
    )
