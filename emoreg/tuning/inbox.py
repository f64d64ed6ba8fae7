"""What people ask of a study by hand, as its driver hears it: looked for every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from emoreg.results.requests import EnqueuedTrial, enqueued, remove_request
from emoreg.storage.files import Files

T = TypeVar("T")
Clock = Callable[[], float]

_LOOK_SECONDS = 1.0
_REMOTE_LOOK_SECONDS = 10.0
"""In an object store, where each look is a request."""


class Polled(Generic[T]):
    """What ``read`` finds in a study's folder, anew every few seconds."""

    def __init__(self, read: Callable[[Files], T], files: Files, found: T, clock: Clock) -> None:
        """Begin with what was ``found``, and look when first asked."""
        self._found = found
        self._read, self._files, self._clock = read, files.impatient(), clock
        self._seconds = _LOOK_SECONDS if files.folder is not None else _REMOTE_LOOK_SECONDS
        self._next_look = clock()

    def __call__(self) -> T:
        """What there is, or was a moment ago."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + self._seconds
            with suppress(OSError):  # the next look may find what this one did not
                self._found = self._read(self._files)
        return self._found


class Inbox:
    """The trials that somebody wants to be tried first."""

    def __init__(self, files: Files, *, clock: Clock = time.monotonic) -> None:
        """Look into the study's folder."""
        self._files = files
        self._removed: set[str] = set()
        self._polled = Polled[tuple[EnqueuedTrial, ...]](enqueued, files, (), clock)

    def trials(self) -> tuple[EnqueuedTrial, ...]:
        """Those that wait, in the order in which they were asked for."""
        return tuple(trial for trial in self._polled() if trial.name not in self._removed)

    def remove(self, name: str) -> None:
        """Remove a request: its trial runs, or cannot."""
        self._removed.add(name)
        remove_request(self._files, name)
