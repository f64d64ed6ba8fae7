"""What the balance costs: seconds of regulation at b = 0, b = 0.5 and b = 1, alternating in one process.

    python -m tests.benchmarks.trial_cost [--rounds 5] [--epochs 2]

b = 0 and b = 1 must skip an encoder, and so cost half of b = 0.5.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from contextlib import nullcontext

import torch
import tyro

import emoreg
from emoreg.formatting import counted
from studies.quickstart import study
from tests.benchmarks.common import machine, spread

BALANCES = (0.0, 0.5, 1.0)


def main(rounds: int = 5, epochs: int = 2, storage: str | None = None) -> None:
    """Measure what the balance costs, and print the table.

    Args:
        rounds: trials of each balance.
        epochs: of each trial.
        storage: folder whose image sets are prepared already; None for one that is gone afterwards.
    """
    torch.set_num_threads(1)
    base = dataclasses.replace(study.config.trial, control="untrained")
    taken: dict[float, list[float]] = {balance: [] for balance in BALANCES}
    with nullcontext(storage) if storage else tempfile.TemporaryDirectory() as place:
        for seed in range(rounds):
            for balance in BALANCES:
                regulation = dataclasses.replace(base.regulation, balance=balance, epochs=epochs)
                trial = dataclasses.replace(base, seed=seed, regulation=regulation)
                outcome = emoreg.run_trial(trial, storage=place, device="cpu")
                taken[balance].append(outcome.regulation_seconds / epochs)
    print(f"{machine()}, 1 thread, {base.backbone} at {base.image_size} px, {counted(rounds, 'round')}\n")
    print("| balance | seconds an epoch | of b = 0.5 |\n|---|---|---|")
    for balance, seconds in taken.items():
        ratio = statistics.median(seconds) / statistics.median(taken[0.5])
        print(f"| {balance:g} | {spread(seconds, 3)} | {ratio:.2f} |")


if __name__ == "__main__":
    tyro.cli(main)
