"""Being told to stop: the first SIGINT (Ctrl-C) or SIGTERM asks, the second leaves at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM calls ``ask`` with its number, and a second one raises KeyboardInterrupt.

    For the main thread. ``ask`` runs wherever the program happens to be: it should do no more than note that it was called.
    """
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
