"""What a study's driver takes with 100, 1,000 and 10,000 trials that do nothing: seconds, memory, and a suggestion's time.

    python -m tests.benchmarks.scale [--sizes 100 1000 10000] [--suggestions 10]

Without Ray and its workers: the driver's own work on each trial, which is Optuna's ask and tell by its journal, the record, and
the queue. The trials are proposed at random; the suggestions that are timed are TPE's, which learns from all of them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import tyro

from emoreg.config import Float, SamplerConfig, StudyConfig
from tests.benchmarks.common import machine, run_alone
from tests.benchmarks.many_trials import peak_mib
from tests.helpers.trials import TINY
from tests.tuning.test_dispatcher import Search

GOAL_SECONDS = 0.5


def config(num_trials: int, sampler: str) -> StudyConfig:
    """The study: three values are searched."""
    return StudyConfig(
        name="scale",
        trial=TINY,
        search_space={
            "regulation.balance": Float(0.0, 1.0),
            "regulation.optimizer.learning_rate": Float(1e-4, 1e-2, log=True),
            "pretraining.optimizer.learning_rate": Float(1e-4, 1e-2, log=True),
        },
        num_trials=num_trials,
        controls=(),
        sampler=SamplerConfig(name=sampler),
    )


def drive(folder: str, size: int, suggestions: int) -> None:
    """Run so many trials and suggest some more, and print the row's numbers."""
    search = Search(config(size + suggestions, "random"), Path(folder))
    begun = time.perf_counter()
    for number in range(size):
        search.given(str(number))
        search.finish(str(number), accuracy=(number * 7919 % 10_000) / 10_000)
    search.records.write()
    seconds = time.perf_counter() - begun
    learning = Search(
        dataclasses.replace(search.config, sampler=SamplerConfig(name="tpe")), Path(folder), all_records=search.records
    )
    taken = []
    for number in range(size, size + suggestions):
        begun = time.perf_counter()
        learning.given(str(number))
        taken.append(time.perf_counter() - begun)
    print(json.dumps([seconds, peak_mib(), statistics.median(taken)]))


def main(sizes: tuple[int, ...] = (100, 1_000, 10_000), suggestions: int = 10) -> None:
    """Measure studies of these sizes, each in a process of its own, and print the table.

    Args:
        sizes: numbers of trials.
        suggestions: that are timed at the end of each study.
    """
    print(f"{machine()}\n\n| trials | driver, s | ms a trial | MiB at most | a suggestion, s |\n|---|---|---|---|---|")
    suggestion = 0.0
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            output = run_alone(f"from {__spec__.name} import drive; drive({folder!r}, {size}, {suggestions})")
        seconds, mib, suggestion = json.loads(output.splitlines()[-1])
        print(f"| {size} | {seconds:.1f} | {1000 * seconds / size:.1f} | {mib:.0f} | {suggestion:.3f} |", flush=True)
    print(f"\nscale ratio={GOAL_SECONDS / suggestion:.1f} goal=1")


if __name__ == "__main__":
    tyro.cli(main)
