"""File systems that lack something."""

from __future__ import annotations

import os
from collections.abc import Callable


def no_locks(number: int) -> Callable[..., None]:
    """An ``fcntl.flock`` of a file system that has no locks, which it says by ``number``."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock
