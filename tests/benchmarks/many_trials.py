"""The memory that a study's driver takes, and the results a second that it handles, with many trials at once.

    python -m tests.benchmarks.many_trials [--at-once 2 20 40] [--epochs 20]

The trials wait until all have ended their first epoch, and then report as fast as they and the driver can: an epoch takes them
milliseconds. Each has a Ray worker of its own, which takes 0.4 GiB and shares this machine's cores with the driver. All else
is as in every study: searcher, Optuna's journal, records, events, progress.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from typing import Any

import tyro

import emoreg
from emoreg.formatting import counted
from tests.benchmarks.common import idle_study, machine, run_alone


class Counter(emoreg.StudyObserver):
    """Counts the results that the driver has handled, and measures its memory."""

    num_results = 0
    first = last = mib_before = 0.0

    def on_epoch(self, *event: Any) -> None:
        """An epoch: the first one begins the count."""
        if self.num_results == 0:
            self.first, self.mib_before = time.monotonic(), peak_mib()
        self.num_results += 1

    def on_end(self, *event: Any) -> None:
        """A trial's end is a result too."""
        self.num_results += 1
        self.last = time.monotonic()

    def row(self, at_once: int) -> str:
        """The table's row of the study that ran."""
        seconds = self.last - self.first
        rate = self.num_results / seconds
        return f"| {at_once} | {self.mib_before:.0f} | {peak_mib():.0f} | {self.num_results} | {seconds:.1f} | {rate:.0f} |"


def peak_mib() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def study(storage: str, *, at_once: int, epochs: int) -> emoreg.Study:
    """The study whose trials all run at once."""
    cpus = len(os.sched_getaffinity(0)) / at_once
    return idle_study(storage, num_trials=at_once, at_once=at_once, epochs=epochs, cpus=cpus)


def drive(storage: str, at_once: int, epochs: int) -> None:
    """Run the study, and print its row."""
    counter = Counter()
    study(storage, at_once=at_once, epochs=epochs).run(observers=[counter])
    assert counter.num_results == at_once * (epochs + 1)
    print(counter.row(at_once))


def main(at_once: tuple[int, ...] = (2, 20, 40), epochs: int = 20) -> None:
    """Measure drivers of many trials, and print the table.

    Args:
        at_once: numbers of trials, one after the other.
        epochs: that each trial reports, before its end.
    """
    print(f"{machine()}; {counted(epochs, 'epoch')} a trial\n")
    print("| at once | MiB before the first result | MiB at most | results | seconds | results a second |")
    print("|---|---|---|---|---|---|")
    for number in at_once:
        with tempfile.TemporaryDirectory() as storage:
            code = f"from {__spec__.name} import drive; drive({storage!r}, {number}, {epochs})"
            # Workers of this one machine would be ended for want of memory before it is all taken.
            output = run_alone(code, {"RAY_memory_monitor_refresh_ms": "0"})
        print(output.splitlines()[-1], flush=True)


if __name__ == "__main__":
    tyro.cli(main)
