"""What a trial takes that does nothing: in a study of emoreg's, and in Ray Tune as its documentation writes it, alternating.

    python -m tests.benchmarks.overhead [--rounds 5] [--num-trials 16]

Tune's side is `Tuner(function, TuneConfig(num_samples=...)).fit()` with all its defaults: a process for each trial. emoreg's
side does all that it does in every study, and trains for milliseconds: Optuna's journal, records, events, checkpoints, locks.
Both have two slots of one core each. Counted from when the first trial begins until the last one has ended, so that neither
side pays for Ray's start.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import tyro
from ray import tune

import emoreg
from emoreg.formatting import counted
from tests.benchmarks.common import idle_study, machine, run_alone, seconds_between, spread

GOAL = 15.0
SLOTS = 2


class Clock(tune.Callback):
    """When the first trial began, and the last one ended."""

    begun: float | None = None
    ended = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins."""
        self.begun = self.begun or time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended."""
        self.ended = time.monotonic()


def do_nothing(config: dict[str, Any]) -> None:
    """The trial of Tune's side."""
    tune.report({"accuracy": config["balance"]})


def plain(folder: str, num_trials: int) -> None:
    """Run Tune's side, and print the seconds that a trial took."""
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    clock = Clock()
    tuner = tune.Tuner(
        do_nothing,
        param_space={"balance": tune.uniform(0.1, 0.9)},
        tune_config=tune.TuneConfig(num_samples=num_trials),
        run_config=tune.RunConfig(storage_path=folder, callbacks=[clock], verbose=0),
    )
    assert tuner.fit().num_errors == 0
    assert clock.begun is not None
    print(json.dumps((clock.ended - clock.begun) / num_trials))


def study(storage: str, *, num_trials: int) -> emoreg.Study:
    """The study of emoreg's side."""
    return idle_study(storage, num_trials=num_trials, at_once=1, cpus=1)


def ours(folder: str, num_trials: int) -> None:
    """Run emoreg's side, and print the seconds that a trial took."""
    ran = study(folder, num_trials=num_trials).run()
    trials = [trial for trial in ran.trials if trial.status == "finished"]
    assert len(trials) == num_trials
    first, last = min(trial.started for trial in trials), max(trial.ended for trial in trials)
    print(json.dumps(seconds_between(first, last) / num_trials))


def main(rounds: int = 5, num_trials: int = 16) -> None:
    """Measure both sides, and print the table.

    Args:
        rounds: of both sides, alternating.
        num_trials: of each side.
    """
    taken: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for side, seconds in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                place = str(Path(folder).resolve())
                output = run_alone(f"from {__spec__.name} import {side}; {side}({place!r}, {num_trials})")
            seconds.append(json.loads(output.splitlines()[-1]))
    print(f"{machine()}, {counted(num_trials, 'trial')} a side, {counted(rounds, 'round')}\n")
    print("| seconds a trial | |\n|---|---|")
    print(f"| Tune, by its defaults | {spread(taken['plain'], 2)} |\n| emoreg | {spread(taken['ours'], 2)} |\n")
    ratio = statistics.median(taken["plain"]) / statistics.median(taken["ours"])
    print(f"overhead ratio={ratio:.1f} goal={GOAL:g}")


if __name__ == "__main__":
    tyro.cli(main)
