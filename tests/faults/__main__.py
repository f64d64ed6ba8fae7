"""Faults, tried on a study of seconds that ends as if nobody had disturbed it.

    python -m tests.faults [--seed 1] [--rounds 2] [--kills 12] [--flips 10000] [--only WORDS]

Prints a table for ``tests/benchmarks/RESULTS.md``: each fault, how often it was tried, what was lost, done twice, changed, used
without a word or told with a traceback, and the longest time that a study waited before it said a word about it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import tyro

from tests.benchmarks.common import machine
from tests.faults import flips as of_bits
from tests.faults import full_disks, servers  # noqa: F401 - which register their faults
from tests.faults import kills as of_processes  # noqa: F401
from tests.faults.harness import FAULTS, Ground, Tally, total

_LONGEST_NOTE = 2000


def run(ground: Ground, seed: int, rounds: int = 1, only: str = "") -> Iterator[tuple[str, Tally]]:
    """Try faults, and give what came of each: all of them in every round, but flips in the first alone."""
    for number in range(rounds):
        for name, fault in FAULTS.items():
            if only in name and (number == 0 or "flipped in" not in name):
                try:
                    yield name, fault(ground, Random(f"{seed} {number} {name}"))
                except AssertionError as error:
                    yield name, Tally(tried=1, notes=[f"broke off: {error}"])
                except pytest.skip.Exception as why:
                    yield name, Tally(answers=Counter({f"left out: {why}": 1}))


def row(name: str, tally: Tally) -> str:
    """A fault's row of the table."""
    counts = (tally.tried, tally.lost, tally.doubled, tally.changed, tally.silent, tally.tracebacks)
    silence = "" if tally.silence is None else f"{tally.silence:.1f}"
    answers = ", ".join(f"{answer} {count:,}" for answer, count in sorted(tally.answers.items()))
    return f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {silence} | {answers} |"


def main(seed: int = 1, rounds: int = 1, kills: int = 12, flips: int = 1000, only: str = "") -> int:
    """Try every fault, and print the table.

    Args:
        seed: of all that chance decides; what the machine's clock decides differs each time.
        rounds: of all faults but flips.
        kills: at random moments, a round.
        flips: of bits, in all.
        only: faults whose names hold these words.

    Returns:
        The exit code: 0 where nothing went wrong.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emoreg-faults-") as folder:
        ground = Ground(Path(folder), kills=kills, flips=-(-flips // len(of_bits.KINDS)))
        tallies: dict[str, Tally] = {}
        for name, result in run(ground, seed, rounds, only):
            tallies[name] = result if name not in tallies else total((tallies[name], result))
            print(f"{time.monotonic() - began:.0f} s: {row(name, result)}", file=sys.stderr, flush=True)
            for note in result.notes:
                print(f"  {note[-_LONGEST_NOTE:]}", file=sys.stderr, flush=True)
    print(f"{machine()}; seed {seed}, {rounds} rounds, {time.monotonic() - began:.0f} s\n")
    print("| fault | tried | lost | doubled | changed | silent | tracebacks | longest silence, s | answers |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(row(name, tally))
    print(row("in all", total(tallies.values())))
    return 0 if all(tally.is_clean for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
