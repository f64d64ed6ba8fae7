"""How long the report and the status of a large study take, and the memory: with a browser's, where figures become images.

    python -m tests.benchmarks.many_records [--num-trials 10000] [--rounds 3] [--commands status report]

The study is made up (``tests.helpers.written``): 10,000 trials of a search by default, controls, a confirmation on ten seeds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from emoreg.formatting import counted
from tests.benchmarks.common import machine, spread
from tests.helpers.written import made_up_config, write_study

LOOK_SECONDS = 0.05
COMMANDS = ("status", "status --json", "report --no-images", "report")


def main(num_trials: int = 10_000, rounds: int = 3, commands: tuple[str, ...] = COMMANDS) -> None:
    """Measure the status and the report of a large study, and print the table.

    Args:
        num_trials: of its search.
        rounds: runs of each command.
        commands: of emoreg, with their options.
    """
    print(f"{machine()}; {counted(num_trials, 'trial')}, {counted(rounds, 'round')}: median (lowest to highest)\n")
    print("| command | seconds | MiB at most |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as storage:
        study = write_study(Path(storage), made_up_config(num_trials=num_trials))
        for command in commands:
            name, *options = command.split()
            runs = [measure([sys.executable, "-m", "emoreg", name, str(study), *options]) for _ in range(rounds)]
            seconds, mib = zip(*runs, strict=True)
            print(f"| `emoreg {command}` | {spread(seconds, 2)} | {max(mib):.0f} |", flush=True)
        page = study / "report" / "index.html"
        if page.exists():
            print(f"\nindex.html: {page.stat().st_size / 2**20:.1f} MiB")


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
    tyro.cli(main)
