"""What the balance costs: seconds of regulation at b = 0, b = 0.5 and b = 1, alternating in one process.

    python -m tests.benchmarks.trial_cost

b = 0 and b = 1 must skip an encoder, and so cost half of b = 0.5.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from emoreg.config import replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.data import load
from emoreg.results.records import EpochRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.training.context import TrialContext
from emoreg.training.events import Event
from emoreg.training.trial import run_trial
from studies.quickstart import study

ROUNDS = 5
BALANCES = (0.0, 0.5, 1.0)


class Seconds:
    """A reporter that keeps the seconds of regulation's epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def report(self, event: Event) -> None:
        if isinstance(event, EpochRecord) and event.stage == "regulation":
            self.seconds.append(event.seconds)


def main() -> None:
    torch.set_num_threads(1)
    base = dataclasses.replace(study().trial, control="untrained")
    taken: dict[float, list[float]] = {balance: [] for balance in BALANCES}
    with tempfile.TemporaryDirectory() as scratch:
        storage = Path(scratch)
        for number in range(ROUNDS):
            for balance in BALANCES:
                config = replace_paths(base, {"regulation.balance": balance, "regulation.epochs": 2})
                seconds = Seconds()
                context = TrialContext(
                    load_images=partial(load, storage=storage),
                    store=ExperienceStore(str(storage / "experience")),
                    folder=storage / f"{number}-{balance}",
                    device=torch.device("cpu"),
                )
                run_trial(resolve_trial(config), context, seconds)
                taken[balance].append(min(seconds.seconds))
    print(
        f"{platform.machine()}, torch {torch.__version__}, 1 thread, {base.backbone} at {base.image_size} px, {ROUNDS} rounds"
    )
    reference = statistics.median(taken[0.5])
    for balance, seconds_each in taken.items():
        low, middle, high = min(seconds_each), statistics.median(seconds_each), max(seconds_each)
        print(f"b = {balance}: {middle:.3f} s an epoch ({low:.3f} to {high:.3f}), {middle / reference:.2f} of b = 0.5")


if __name__ == "__main__":
    main()
