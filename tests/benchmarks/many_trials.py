"""The memory that a study's driver takes, and the results a second that it handles, with up to 200 trials at once.

    python -m tests.benchmarks.many_trials [NUMBER_AT_ONCE ...]

The trials do nothing: they wait until all have begun, and then each reports its epochs as fast as the driver takes them. Each
has a Ray worker of its own, which takes about 0.1 GiB and does not import torch. All else is as in every study: searcher,
Optuna's journal, records, events, progress.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import ray
from emoreg.tuning.messages import epoch_result, last_result
from ray import tune

from tests.benchmarks.idle_trials import epoch_of, result_of
from tests.integration.cluster import cluster_of
from tests.integration.test_study import STUDY

NUMBERS_AT_ONCE = (2, 20, 200)
NUM_EPOCHS = 20
LOOK_SECONDS = 0.5


def train(assignment: dict[str, Any], *, workplace: None, number_at_once: int, begun: str) -> None:
    """Stands for ``worker.train``."""
    config, role = assignment["trial"], assignment["role"]
    (Path(begun) / config.identity).touch()
    while len(os.listdir(begun)) < number_at_once:
        time.sleep(LOOK_SECONDS)
    for epoch in range(1, NUM_EPOCHS + 1):
        tune.report({**epoch_result(epoch_of(config, epoch, 0.0), role=role, num_epochs=NUM_EPOCHS), "device": "none"})
    last = last_result(role=role, epochs=NUM_EPOCHS, accuracy=0.5, loss=1.0, device_seconds=0.0)
    tune.report({**last, "result": dataclasses.asdict(result_of(config, 0.0)), "device": "none"})


def drive(address: str, storage: str, number_at_once: int, begun: str) -> None:
    """What `emoreg run` does, with these trials."""
    from emoreg.tuning.driver import Driver

    from emoreg.cli import main as cli
    from emoreg.tuning import study

    class CountingDriver(Driver):
        num_results: ClassVar[int] = 0
        first: ClassVar[float]

        def on_trial_result(self, *arguments: Any, **more: Any) -> None:
            if self.num_results == 0:
                CountingDriver.first = time.monotonic()
                print(f"MIB BEFORE {peak_mib():.0f}")
            CountingDriver.num_results += 1
            super().on_trial_result(*arguments, **more)

        def end_run(self, *arguments: Any) -> Any:
            seconds = time.monotonic() - self.first
            print(f"MIB AFTER {peak_mib():.0f}")
            print(f"RESULTS {self.num_results} SECONDS {seconds:.3f}")
            return super().end_run(*arguments)

    def no_workplace(**unused: object) -> None:
        """Stands for ``Workplace``, whose module would bring torch to every worker."""

    study.train = partial(train, number_at_once=number_at_once, begun=begun)
    study.Workplace = no_workplace  # type: ignore[assignment, misc]
    study.Driver = CountingDriver  # type: ignore[misc]
    epochs = ["--trial.regulation.epochs", str(NUM_EPOCHS)]
    trials = ["--num-trials", str(number_at_once), "--sampler.name", "random", "--controls", "--experience.no-share"]
    cli.main(["run", str(STUDY), "--storage", storage, "--address", address, *epochs, *trials])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(number_at_once: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="r") as temporary,
        tempfile.TemporaryDirectory() as storage,
        tempfile.TemporaryDirectory() as begun,
    ):
        began = time.monotonic()
        # Workers of this one machine would be ended for want of memory before it is all taken.
        with cluster_of(Path(temporary), f"--num-cpus={number_at_once}", RAY_memory_monitor_refresh_ms="0") as cluster:
            command = [sys.executable, "-m", "tests.benchmarks.many_trials", "drive", cluster.address, storage]
            driver = cluster.start(*command, str(number_at_once), begun)
            output, _ = driver.communicate()
            assert driver.returncode == 0, output
    found = {key: float(value) for key, value in re.findall(r"(BEFORE|AFTER|RESULTS|SECONDS) ([\d.]+)", output)}
    assert found["RESULTS"] == number_at_once * (NUM_EPOCHS + 1), output
    print(
        f"{number_at_once} at once: driver {found['BEFORE']:.0f} MiB at most until all had begun, {found['AFTER']:.0f} at the "
        f"end; {found['RESULTS']:.0f} results in {found['SECONDS']:.1f} s, {found['RESULTS'] / found['SECONDS']:.0f} a second; "
        f"{time.monotonic() - began:.0f} s in all",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
        return
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Ray {ray.__version__}; {NUM_EPOCHS} epochs a trial")
    for number_at_once in map(int, sys.argv[1:] or NUMBERS_AT_ONCE):
        measure(number_at_once)


if __name__ == "__main__":
    main()
