"""How long a study takes to get over each fault of a cluster.

    python -m tests.benchmarks.recovery [ROUNDS]

Runs ``tests/integration/test_faults.py``, which says what is measured, and prints a table of all rounds.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.integration.fault_study import NUM_TRIALS

FAULTS = Path(__file__).parents[1] / "integration" / "test_faults.py"


class Collected:
    """A plugin of pytest's that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.recoveries: dict[str, list[dict[str, float]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "recovery":
                    self.recoveries.setdefault(value["fault"], []).append(value)


def _shown(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def main(rounds: int) -> int:
    collected = Collected()
    codes = [pytest.main(["-m", "slow", str(FAULTS)], plugins=[collected]) for _ in range(rounds)]
    print(f"{platform.machine()}, torch {torch.__version__}, {rounds} rounds: median (lowest to highest)\n")
    print("| fault | Ray's own detection, s | until Ray shows the node dead, s | recovery beyond detection, s | trials |")
    print("|---|---|---|---|---|")
    for fault, values in collected.recoveries.items():
        declared = [value["declared"] for value in values if value["declared"] is not None]
        detected = [value["detected"] for value in values]
        beyond = [value["recovered"] - value["detected"] for value in values]
        exact = sum(value["trials"] == NUM_TRIALS for value in values)
        shown = " | ".join(_shown(seconds) if seconds else "" for seconds in (detected, declared, beyond))
        print(f"| {fault} | {shown} | exact in {exact} of {rounds} |")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
