"""Being told to stop: the first signal asks, a further SIGINT (Ctrl-C) or SIGTERM leaves at once.

SIGHUP is a terminal that was lost; SIGUSR1 and SIGUSR2 are what a scheduler of a cluster sends ahead of the end. They may come
several times, and to every process of a job.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """Whether a run is to stop, and by when. Asked by signal handlers, which may do no more than note it.

    Attributes:
        is_asked: whether it is to stop.
        reason: why, where no signal has asked first: "before its 8 hours were over".
        trials: identities of those that are to stop by themselves.
    """

    def __init__(self, grace_seconds: float = math.inf) -> None:
        """Begin unasked.

        Args:
            grace_seconds: that trials have to save their state after another signal than SIGINT, and before a budget ends.
        """
        self._grace_seconds = grace_seconds
        self._deadline = math.inf
        self._is_signalled = False
        self.is_asked = False
        self.reason: str | None = None
        self.trials: set[str] = set()

    def ask(self, signal_number: int | None = None) -> None:
        """Stop; after another signal than SIGINT within the grace period.

        Raises:
            KeyboardInterrupt: for SIGINT or SIGTERM, if a signal has asked before.
        """
        if self._is_signalled and signal_number in _INSISTENT:
            raise KeyboardInterrupt
        self._is_signalled |= signal_number is not None
        self.is_asked = True
        if signal_number not in (None, signal.SIGINT):
            self._deadline = min(self._deadline, time.monotonic() + self._grace_seconds)

    def ask_before(self, reason: str) -> None:
        """Stop within the grace period, for the run must end soon."""
        if not self.is_asked:
            self.is_asked, self.reason = True, reason
            self._deadline = time.monotonic() + self._grace_seconds

    @property
    def is_overdue(self) -> bool:
        """Whether the grace period is over."""
        return time.monotonic() > self._deadline


@contextmanager
def stop_on_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Within, the first signal calls ``ask`` with its number, and SIGINT or SIGTERM after it raise KeyboardInterrupt.

    SIGHUP, SIGUSR1 and SIGUSR2 stay ignored where they are: `nohup` wants it so. In another thread than the main one, where
    Python takes no signals, nothing is caught. ``ask`` runs wherever the program happens to be: it should do no more than note
    that it was called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_asked = False
    terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if number == signal.SIGHUP:
            _leave(terminals)
        if not is_asked:
            is_asked = True
            ask(number)
        elif number in _INSISTENT:
            raise KeyboardInterrupt

    caught = (*_INSISTENT, *(number for number in _WARNINGS if signal.getsignal(number) is not signal.SIG_IGN))
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a handler that is not Python's


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within, SIGHUP, SIGUSR1 and SIGUSR2 wait, in this thread; for what is started within, they wait for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WARNINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(terminals: list[int]) -> None:
    """Let nothing more be written to those of the streams whose terminal is gone: it would be an error."""
    for stream in terminals:
        if not os.isatty(stream):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, stream)
            os.close(null)
