"""How long a study takes to get over each fault of a cluster.

    python -m tests.benchmarks.recovery [--rounds 3] [--only WORDS]

Runs ``tests/integration/test_faults.py``, which says what is measured, and prints a table of all rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tyro

from emoreg.formatting import counted
from tests.benchmarks.common import machine, spread
from tests.integration.fault_study import NUM_TRIALS

FAULTS = Path(__file__).parents[1] / "integration" / "test_faults.py"
Recovery = dict[str, Any]
"""A ``Recovery`` of ``test_faults``, as pytest carries it."""


class Collected:
    """A plugin of pytest's that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.recoveries: dict[str, list[Recovery]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "recovery":
                self.recoveries.setdefault(value["fault"], []).append(value)


def row(fault: str, recoveries: Iterable[Recovery]) -> str:
    """The table's row of a fault, from all rounds."""
    rounds = [*recoveries]
    detected = spread([recovery["detected"] for recovery in rounds])
    dead = [recovery["declared"] for recovery in rounds if recovery["declared"] is not None]
    beyond = spread([recovery["recovered"] - recovery["detected"] for recovery in rounds])
    exact = sum(recovery["trials"] == NUM_TRIALS for recovery in rounds)
    return f"| {fault} | {detected} | {spread(dead) if dead else ''} | {beyond} | exact in {exact} of {len(rounds)} |"


def main(rounds: int = 1, only: str = "") -> int:
    """Run the tests of faults, and print the table.

    Args:
        rounds: of all of them.
        only: words that choose tests, as pytest's -k takes them.

    Returns:
        The exit code: 0 where every test passed.
    """
    collected = Collected()
    codes = [pytest.main(["-m", "slow", "-n0", "-k", only, str(FAULTS)], plugins=[collected]) for _ in range(rounds)]
    print(f"{machine()}, {counted(rounds, 'round')}: median (lowest to highest)\n")
    print("| fault | Ray's first sign, s | Ray shows the node dead, s | recovery beyond Ray's sign, s | trials |")
    print("|---|---|---|---|---|")
    for fault, recoveries in collected.recoveries.items():
        print(row(fault, recoveries))
    return max(codes)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
