"""File systems that lack something."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def no_locks(number: int, folder: Path = Path("/")) -> Callable[..., None]:
    """An ``fcntl.flock`` for which the file system of ``folder`` has no locks, which it says by ``number``."""
    flock = fcntl.flock

    def lock(stream: Any, kind: int) -> None:
        if Path(f"/proc/self/fd/{stream.fileno()}").readlink().is_relative_to(folder):
            raise OSError(number, os.strerror(number))
        flock(stream, kind)

    return lock
