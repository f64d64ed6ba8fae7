"""The terminal that commands print to: what users have named is printed as it is, and a line is as long as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def leave_stdout() -> None:
    """Print nowhere from now on, where nobody reads any more: Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def terminal() -> Console:
    """The terminal, or the notebook, that this process prints to."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table without lines, for what goes on; ``right`` are the columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    return made


def new_table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; ``right`` are the columns of numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
