"""A table of a report, before it is set: text in cells, each number with its n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emoreg.results.statistics import Says

MOST_LISTED = 8
"""More names than that are counted, and longer tables folded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        n: how many values a number is of; None where it says so itself, or a column does.
        is_best: of its column.
        says: the verdict that the text is.
    """

    text: str
    n: int | None = None
    is_best: bool = False
    says: Says | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """The head of a column, and how its cells are set."""

    title: str
    kind: Literal["text", "number", "code", "command"] = "number"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows under a common title, which may be empty. The first cell of a row is its head."""

    title: str = ""
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table.

    Attributes:
        above: titles over the columns but the first, each with the number of columns below it; empty for none.
        note: what a reader must know to read it.
        is_long: whether it is folded away until it is asked for.
    """

    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    above: tuple[tuple[str, int], ...] = ()
    note: str = ""
    is_long: bool = False


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
