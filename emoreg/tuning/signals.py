"""Being told to stop: the first SIGINT (Ctrl-C) or SIGTERM asks, the second leaves at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
            grace_seconds: that trials have to save their state after SIGTERM, and before a budget ends.
        """
        self._grace_seconds = grace_seconds
        self._deadline = math.inf
        self._is_signalled = False
        self.is_asked = False
        self.reason: str | None = None
        self.trials: set[str] = set()

    def ask(self, signal_number: int | None = None) -> None:
        """Stop; after SIGTERM within the grace period.

        Raises:
            KeyboardInterrupt: if a signal has asked before.
        """
        if self._is_signalled and signal_number is not None:
            raise KeyboardInterrupt
        self._is_signalled |= signal_number is not None
        self.is_asked = True
        if signal_number == signal.SIGTERM:
            self._deadline = time.monotonic() + self._grace_seconds

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
    """Within, the first SIGINT or SIGTERM calls ``ask`` with its number, and a second one raises KeyboardInterrupt.

    In another thread than the main one, where Python takes no signals, nothing is caught. ``ask`` runs wherever the program
    happens to be: it should do no more than note that it was called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        ask(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a handler that is not Python's
