"""The command line in the test's own process: one of its own takes five seconds of a core to import what it needs."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import pytest

from emoreg.cli.main import main


def emoreg_here(*arguments: str, code: int = 0) -> str:
    """All that a command prints that trains nothing.

    Args:
        arguments: what is typed after ``emoreg``.
        code: it must exit with.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code, printed.getvalue()
    return printed.getvalue()
