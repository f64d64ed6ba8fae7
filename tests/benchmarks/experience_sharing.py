"""What sharing pre-training saves, and what waiting for it costs: the same 32 trials with sharing off and on, then waiting.

    python -m tests.benchmarks.experience_sharing

32 trials on 4 trunks (subsets of the stimuli), 8 a trunk, of pre-training lengths 2, 4, 8 and 16 epochs in equal parts, two at
a time; each measured in a process of its own, alternating. With sharing off each trial pays for its whole pre-training, so that
N trials of mean P seconds of pre-training and F seconds of everything else take N (P + F); with k trunks of P' seconds to their
full length they need at least k P' + N F. Then the share of the slots' time spent waiting, at 2 and at 8 slots, with as many
trunks as slots and with half as many.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import torch

import emoreg
from emoreg.config import (
    Choice,
    ExperienceConfig,
    ImageSetConfig,
    PretrainingConfig,
    RegulationConfig,
    ResourcesConfig,
    SamplerConfig,
    TrialConfig,
)
from emoreg.results.analysis import device_time, waiting_share
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records

LENGTHS = (8, 2, 16, 4)
ROUNDS = 2
SETTING = "EMOREG_BENCHMARK"


def study() -> emoreg.Study:
    """32 trials; the number of trunks, the slots and whether they share come from the environment."""
    trunks, slots, share = (int(value) for value in os.environ[SETTING].split())
    balances = tuple(index / 10 for index in range(1, 1 + 8 // trunks))
    return emoreg.Study(
        "sharing",
        trial=TrialConfig(
            backbone="test_resnet",
            stimuli=ImageSetConfig(name="openmoji", num_images=400, validation_fraction=0.0),
            task=ImageSetConfig(name="digits", num_images=400),
            pretraining=PretrainingConfig(batch_size=32),
            regulation=RegulationConfig(epochs=1, batch_size=32),
        ),
        search_space={
            "stimuli.split_seed": Choice(tuple(range(trunks))),  # trunk after trunk: the order in which most would wait
            "pretraining.epochs": Choice(LENGTHS),
            "regulation.balance": Choice(balances),
        },
        num_trials=32,
        sampler=SamplerConfig(name="grid"),
        controls=(),
        experience=ExperienceConfig(share=bool(share)),
        resources=ResourcesConfig(cpus_per_trial=2 / slots, max_concurrent=slots),
    )


def measure(*, trunks: int, slots: int, share: bool) -> Records:
    """Run the study in a process of its own, on a storage that has its image sets prepared."""
    environment = {**os.environ, SETTING: f"{trunks} {slots} {int(share)}"}
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "emoreg", "run", f"{__file__}", "--storage", storage]
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return Records(Path(storage) / "sharing")


def seconds(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def wall(records: Records) -> float:
    """Seconds from the start of the first trial to the end of the last."""
    trials = records.trials.values()
    return seconds(min(row.started for row in trials), max(row.ended for row in trials))


def other(row: TrialRecord) -> float:
    """Seconds of a trial but for pre-training."""
    return seconds(row.started, row.ended) - row.pretraining_seconds - row.waiting_seconds


def main() -> None:
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {ROUNDS} rounds")
    runs: dict[bool, list[Records]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for share in (False, True):
            runs[share].append(measure(trunks=4, slots=2, share=share))
    paid = {share: [device_time(run.trials.values()).paid for run in of] for share, of in runs.items()}
    walls = {share: [wall(run) for run in of] for share, of in runs.items()}
    for share in (False, True):
        rows = [row for run in runs[share] for row in run.trials.values()]
        epochs = {len([key for key in run.epochs if key[1] == "pretraining"]) for run in runs[share]}
        print(
            f"sharing {'on ' if share else 'off'}: {_range(paid[share])} s of pre-training ({epochs} epochs), "
            f"{_range(walls[share])} s of wall time, {statistics.mean(map(other, rows)):.2f} s of everything else a trial"
        )
    num_trials, slots = 32, 2
    trials = [row for run in runs[False] for row in run.trials.values()]
    pretraining = statistics.mean(row.pretraining_seconds for row in trials)
    rest = statistics.mean(map(other, trials))
    epoch = sum(row.pretraining_seconds for row in trials) / sum(row.pretraining_epochs for row in trials)
    trunks = 4 * max(LENGTHS) * epoch
    best_paid = num_trials * pretraining / trunks
    best_wall = num_trials * (pretraining + rest) / (trunks + num_trials * rest)
    for name, values, best in (("pre-training", paid, best_paid), ("wall time", walls, best_wall)):
        ratio = statistics.median(values[False]) / statistics.median(values[True])
        print(f"{name}: off / on = {ratio:.2f}; arithmetic optimum {best:.2f}; reached {ratio / best:.2f} of it")
    print(f"(P = {pretraining:.2f} s, F = {rest:.2f} s, a whole trunk {trunks / 4:.2f} s, {slots} slots)")
    for num_slots, num_trunks in ((2, 2), (2, 1), (8, 8), (8, 4)):
        share_of_time = waiting_share(measure(trunks=num_trunks, slots=num_slots, share=True).runs.values())
        print(f"waiting, {num_slots} slots, {num_trunks} trunks: {100 * share_of_time:.1f} % of the slots' time")


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
