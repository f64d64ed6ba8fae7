"""From `emoreg run` to the first step of its first trial, and to its end: two trials of a second whose images are prepared.

    python -m tests.benchmarks.start_up [--rounds 5]

The goal is 8 s to the first step on two idle cores; the last line has the measured part of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import tyro

from emoreg.formatting import counted
from tests.benchmarks.common import machine, spread

GOAL_SECONDS = 8.0
STUDY = """
import emoreg

study = emoreg.Study(
    "short",
    storage={storage!r},
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=16,
        stimuli=emoreg.ImageSetConfig(name="openmoji", num_images=300, validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="digits", num_images=300),
        pretraining=emoreg.PretrainingConfig(epochs=2),
        regulation=emoreg.RegulationConfig(epochs=3),
    ),
    search_space={{"regulation.balance": emoreg.Float(0.1, 0.9)}},
    num_trials=2,
    controls=(),
)
"""
_FIRST_EPOCH = re.compile(r"^(\S+ \S+),(\d+) .* epoch 1: .* ([\d.]+) s$", re.MULTILINE)


def main(rounds: int = 5) -> None:
    """Measure it, and print the table.

    Args:
        rounds: runs of the study, after one that prepares its images.
    """
    first, last = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "short.py"
        file.write_text(STUDY.format(storage=folder))
        for number in range(rounds + 1):
            begun = time.time()
            run = [sys.executable, "-m", "emoreg", "run", str(file), "--name", f"short{number}"]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
            if number > 0:
                last.append(time.time() - begun)
                first.append(first_step(Path(folder) / f"short{number}") - begun)
    print(f"{machine()}, {counted(rounds, 'round')}\n")
    print("| from the command | seconds |\n|---|---|")
    print(f"| to the first step of the first trial | {spread(first)} |\n| to its end, after two trials | {spread(last)} |\n")
    print(f"start_up ratio={sorted(first)[len(first) // 2] / GOAL_SECONDS:.2f} goal=1")


def first_step(study: Path) -> float:
    """When the first trial of a study began to train, as its logs have it."""
    found = [match for log in study.glob("trials/*/log.txt") for match in _FIRST_EPOCH.findall(log.read_text())]
    return min(
        datetime.strptime(when, "%Y-%m-%d %H:%M:%S").astimezone(UTC).timestamp() + int(millis) / 1000 - float(seconds)
        for when, millis, seconds in found
    )


if __name__ == "__main__":
    tyro.cli(main)
