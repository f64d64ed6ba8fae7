"""How many trials a cluster of 1, 2, 4 and 8 machines does, against the ideal: 64 trials that take as long as each other.

    python -m tests.benchmarks.cluster_scaling

The machines are Ray nodes on this one, of one trial each. Trials sleep on the device's behalf, so that this machine's cores do
not become the limit; all else is done as in every study: searcher, leases, logs, events, records. Measured from when each
machine has begun a trial until the last trial begins: while there is work for all of them.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import ray

from emoreg.config import TrialConfig
from emoreg.results.records import TrialResult
from emoreg.results.tables import Records
from tests.benchmarks.idle_trials import epoch_of, result_of
from tests.integration.cluster import cluster_of
from tests.integration.test_study import STUDY

NODES = (1, 2, 4, 8)
NUM_TRIALS = 64
SECONDS = 5.0


def sleeping_trial(config: TrialConfig, reporter: Any, **unused: object) -> TrialResult:
    """Stands for ``run_trial``."""
    time.sleep(SECONDS)
    reporter.report(epoch_of(config, 1, SECONDS))
    return result_of(config, SECONDS)


def train(assignment: dict[str, Any], *, workplace: Any) -> None:
    """Stands for ``worker.train``: all of it but the training."""
    from emoreg.tuning import worker

    worker.run_trial = sleeping_trial  # type: ignore[assignment]
    worker.train(assignment, workplace=workplace)


def drive(address: str, storage: str) -> None:
    """What `emoreg run` does, with trials that sleep."""
    from emoreg.cli import main as cli
    from emoreg.tuning import study

    study.train = train
    settings = {"--num-trials": NUM_TRIALS, "--sampler.name": "random", "--trial.regulation.epochs": 1}
    overrides = [str(word) for pair in settings.items() for word in pair]
    share = ["--experience.no-share", "--controls"]
    cli.main(["run", str(STUDY), "--storage", storage, "--address", address, *overrides, *share])


def measure(num_nodes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="r") as temporary, tempfile.TemporaryDirectory() as storage:
        with cluster_of(Path(temporary), "--num-cpus=0", *["--num-cpus=1"] * num_nodes) as cluster:
            command = [sys.executable, "-m", "tests.benchmarks.cluster_scaling", cluster.address, storage]
            driver = cluster.start(*command)
            output, _ = driver.communicate()
            assert driver.returncode == 0, output
        starts = sorted(datetime.fromisoformat(row.started) for row in Records(Path(storage) / "tiny").trials.values())
    assert len(starts) == NUM_TRIALS
    window = (starts[-1] - starts[num_nodes - 1]).total_seconds()
    rate, ideal = (NUM_TRIALS - num_nodes) / window, num_nodes / SECONDS
    print(f"{num_nodes} nodes: {rate:.3f} trials/s of {ideal:.3f}, {rate / ideal:.2f} of the ideal", flush=True)


def main() -> None:
    if len(sys.argv) == 3:
        drive(sys.argv[1], sys.argv[2])
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, Ray {ray.__version__}; {NUM_TRIALS} trials that sleep {SECONDS:g} s")
    for num_nodes in NODES:
        measure(num_nodes)


if __name__ == "__main__":
    main()
