"""A table of a report, before it is set, and how numbers and names are written in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from emoreg.results.ladder import Decision

Kind = Literal["text", "number", "code", "command"]

MOST_LISTED = 8
"""More names than that are counted, and longer tables folded."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, of how many values a number is where that is not said elsewhere, the verdict that it is."""

    text: str
    n: int | None = None
    is_best: bool = False
    decision: Decision | None = None


Row = Sequence[Cell | str]
"""The first cell is the row's head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table.

    Attributes:
        columns: title of each, and how its cells are set.
        groups: rows under a common title, which may be empty.
        above: titles over the columns but the first, each with the number of columns below it; empty for none.
        note: what a reader must know to read it.
        folds: whether it is folded away until it is asked for, where it is long.
    """

    caption: str
    columns: Sequence[tuple[str, Kind]]
    groups: Sequence[tuple[str, Sequence[Row]]]
    above: Sequence[tuple[str, int]] = ()
    note: str = ""
    folds: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether it is folded away."""
        return self.folds and sum(len(rows) for _, rows in self.groups) > MOST_LISTED

    def bodies(self) -> Iterator[tuple[str, list[list[Cell]]]]:
        """The groups, all of their cells as ``Cell``."""
        for title, rows in self.groups:
            yield title, [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]


def numbers(*titles: str) -> list[tuple[str, Kind]]:
    """Columns of numbers."""
    return [(title, "number") for title in titles]


def texts(*titles: str) -> list[tuple[str, Kind]]:
    """Columns of text."""
    return [(title, "text") for title in titles]


def listed(names: Sequence[str]) -> str:
    """The names with commas, no more than a reader takes in."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def span(seeds: Sequence[int]) -> str:
    """Seeds, as a range where they are one."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return " ".join(map(str, seeds)) or "none"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


def seconds_text(seconds: float) -> str:
    """Seconds without a unit, with a tenth where they are few."""
    return f"{seconds:,.0f}" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}"


def moment(time: str) -> str:
    """A time of the records to the minute."""
    return time[:16].replace("T", " ")
