"""The first step of an architecture's second trial against that of its first, compiled: in one process, and in a new one.

    python -m tests.benchmarks.first_step [--backbone test_resnet] [--precision bf16] [--rounds 3]

Timed is all that a worker does that has imported what a trial needs: it builds the network, imports torch's compiler, compiles,
and trains one batch. The first trial finds an empty cache; the second one in its process finds the graph, and one in a new
process, as on another worker of the machine, finds the kernels on disk. The same without compiling stands beside them.

The ratio of the last line is the lower of both ratios over their goals: 1 reaches both.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time

import tyro

from emoreg.config import RegulationConfig, TrialConfig
from emoreg.config.trial import Compile, Precision
from emoreg.formatting import counted
from emoreg.training.precision import stepper
from tests.benchmarks.common import machine, run_alone, spread
from tests.helpers.trials import CPU

GOALS = {"in one process": 50.0, "in a new process": 6.0}
"""Seconds of the first trial's first step, by those of the second's."""


def steps(backbone: str, batch_size: int, precision: Precision, compiled: Compile, num_trials: int) -> None:
    """Print the seconds that each of so many trials takes to the end of its first step, in this process."""
    config = TrialConfig(
        backbone=backbone, precision=precision, compile=compiled, regulation=RegulationConfig(batch_size=batch_size)
    )
    seconds = []
    for seed in range(num_trials):
        begun = time.perf_counter()
        stepper(dataclasses.replace(config, seed=seed), CPU, batch_size)()
        seconds.append(time.perf_counter() - begun)
    print(json.dumps(seconds))


def main(
    backbone: str = "test_resnet", batch_size: int = 64, precision: Precision = "bf16", threads: int = 1, rounds: int = 3
) -> None:
    """Measure the first steps, and print the table.

    Args:
        backbone: of timm, at 32 px.
        batch_size: images of the step.
        precision: that it computes in.
        threads: of torch.
        rounds: each with an empty cache at its beginning.
    """
    taken: dict[str, list[float]] = {name: [] for name in ("the first trial", *GOALS, "not compiled")}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}

            def run(compiled: Compile, num_trials: int, environment: dict[str, str] = environment) -> list[float]:
                settings = (backbone, batch_size, precision, compiled, num_trials)
                output = run_alone(f"from {__spec__.name} import steps; steps(*{settings!r})", environment)
                seconds: list[float] = json.loads(output.splitlines()[-1])
                return seconds

            (first, second), (new,), (_, plain) = run("on", 2), run("on", 1), run("off", 2)
        for name, seconds in zip(taken, (first, second, new, plain), strict=True):
            taken[name].append(seconds)
    heading = f"{backbone}, batch {batch_size}, {precision}, {counted(threads, 'thread')}, {counted(rounds, 'round')}"
    print(f"{machine()}, {heading}\n\n{table(taken)}")


def table(taken: dict[str, list[float]]) -> str:
    """What was measured, as a table with the ratios below it."""
    lines = ["| first step | seconds | the first trial's / it |", "|---|---|---|"]
    first = statistics.median(taken["the first trial"])
    ratios = {name: first / statistics.median(seconds) for name, seconds in taken.items()}
    lines += [f"| {name} | {spread(seconds, 2)} | {ratios[name]:.1f} |" for name, seconds in taken.items()]
    reached = [f"first_step ({name}) ratio={ratios[name]:.1f} goal={goal:g}" for name, goal in GOALS.items()]
    lowest = min(ratios[name] / goal for name, goal in GOALS.items())
    return "\n".join([*lines, "", *reached, f"first_step ratio={lowest:.2f} goal=1"])


if __name__ == "__main__":
    tyro.cli(main)
