"""How many trials a cluster of 1, 2, 4 and 8 machines does, against the ideal: 64 trials that take as long as each other.

    python -m tests.benchmarks.cluster_scaling [--nodes 1 2 4 8] [--num-trials 64] [--seconds 5]

The machines are Ray nodes on this one, of one trial each. Trials sleep on the device's behalf, so that this machine's cores do
not become the limit, and train for some milliseconds; all else is done as in every study. The first trial of each machine waits
until all have one: how long workers take to start is left out. Measured from then until the last trial begins: while there is
work for all of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tyro

import emoreg
from emoreg.formatting import counted
from tests.benchmarks.common import idle_study, machine, seconds_between
from tests.integration.cluster import cluster_of


def study(storage: str, *, num_nodes: int, num_trials: int, seconds: float) -> emoreg.Study:
    """The study whose trials sleep."""
    return idle_study(storage, num_trials=num_trials, at_once=num_nodes, seconds=seconds, cpus=1)


def measure(**settings: float) -> emoreg.Study:
    """The study after its run on so many nodes, its results read."""
    nodes = ["--num-cpus=1"] * int(settings["num_nodes"])
    with tempfile.TemporaryDirectory() as storage:
        with cluster_of("--num-cpus=0", *nodes) as cluster:
            run = f"study({storage!r}, **{settings!r}).run(address={cluster.address!r})"
            driver = cluster.start(sys.executable, "-c", f"from {__spec__.name} import study; {run}")
            output, _ = driver.communicate()
            assert driver.returncode == 0, output
        ran = emoreg.load_study(Path(storage) / "idle")
        assert len(ran.trials) == settings["num_trials"], output
    return ran


def row(ran: emoreg.Study, num_nodes: int, seconds: float) -> str:
    """The table's row of a study that ran."""
    starts = sorted(trial.started for trial in ran.trials)
    rate = (len(starts) - num_nodes) / seconds_between(starts[num_nodes - 1], starts[-1])
    ideal = num_nodes / seconds
    return f"| {num_nodes} | {rate:.3f} | {ideal:.3f} | {rate / ideal:.2f} |"


def main(nodes: tuple[int, ...] = (1, 2, 4, 8), num_trials: int = 64, seconds: float = 5.0) -> None:
    """Measure how a cluster scales, and print the table.

    Args:
        nodes: numbers of machines, one after the other.
        num_trials: of each study, more than there are machines.
        seconds: that a trial takes.
    """
    print(f"{machine()}; {counted(num_trials, 'trial')} that sleep {seconds:g} s\n")
    print("| nodes | trials a second | ideal | reached of it |\n|---|---|---|---|")
    for num_nodes in nodes:
        ran = measure(num_nodes=num_nodes, num_trials=num_trials, seconds=seconds)
        print(row(ran, num_nodes, seconds), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
