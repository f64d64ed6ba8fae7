"""How tests wait: for a condition, never for a time, and longer than any machine takes, since machines differ fivefold."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds after which a test gives up what must come. Only a test that fails waits so long."""


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen[Any] | None = None,
    *,
    told: Callable[[], str] = str,
    pause: float = 0.02,
) -> float:
    """Wait until a condition holds.

    Args:
        condition: is looked at after each pause.
        process: must run until then.
        told: what the failure says beside its reason.
        pause: seconds between two looks.

    Returns:
        The seconds that it took.

    Raises:
        AssertionError: where the process ended before, or ``PATIENCE`` did.
    """
    start = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, f"the process ended before the moment came. {told()}"
        assert time.monotonic() - start < PATIENCE, f"the moment never came. {told()}"
        time.sleep(pause)
    return time.monotonic() - start
