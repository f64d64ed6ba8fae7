"""How long the report and the status of a large study take, and the memory: with a browser's, where figures become images.

    python -m tests.benchmarks.many_records [NUM_TRIALS] [ROUNDS]

The study is made up (``tests.helpers.written``): 10,000 trials of a search by default, controls, a confirmation on ten seeds.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.written import made_up_config, write_study

LOOK_SECONDS = 0.05


def main() -> None:
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores; {num_trials} trials, median of {rounds} (all)")
    with tempfile.TemporaryDirectory() as storage:
        study = str(write_study(Path(storage), made_up_config(num_trials=num_trials)))
        for what, command in {
            "status": ["status", study],
            "status --json": ["status", study, "--json"],
            "report --no-images": ["report", study, "--no-images"],
            "report": ["report", study],
        }.items():
            runs = [measure([sys.executable, "-m", "emoreg", *command]) for _ in range(rounds)]
            seconds, mib = [run[0] for run in runs], max(run[1] for run in runs)
            every = ", ".join(f"{value:.2f}" for value in seconds)
            print(f"{what}: {statistics.median(seconds):.2f} s ({every}), {mib:.0f} MiB at most", flush=True)
        page = Path(study) / "report" / "index.html"
        print(f"index.html: {page.stat().st_size / 2**20:.1f} MiB")


def measure(command: list[str]) -> tuple[float, float]:
    """The seconds of a command, and the largest sum of what it and its children held of memory at one time, in MiB."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        most = 0.0
        while process.poll() is None:
            most = max(most, sum(map(proportional_mib, family(process.pid))))
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - began
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    return seconds, most


def family(process: int) -> set[int]:
    """A process and all that it has begun."""
    found = {process}
    children = {child for task in Path(f"/proc/{process}/task").glob("*/children") for child in _read(task).split()}
    for child in children:
        found |= family(int(child))
    return found


def proportional_mib(process: int) -> float:
    """Its memory, what it shares divided by those who share it."""
    lines = [line for line in _read(Path(f"/proc/{process}/smaps_rollup")).splitlines() if line.startswith("Pss:")]
    return sum(int(line.split()[1]) for line in lines) / 1024


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended by now
        return ""


if __name__ == "__main__":
    main()
