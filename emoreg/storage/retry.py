"""Servers that do not answer: asked again for a while, not in silence, and for one patience an outage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

PATIENCE_SECONDS = 120.0
"""How long a study waits for a server that does not answer, its cleaning up included."""
_HICCUP_SECONDS = 1.5
"""Nobody is told of a shorter outage, and what is saved at a stop is not lost by it."""
_PAUSE_SECONDS = (0.1, 2.0)
"""Before the second attempt, and the longest."""
_SPENT_SECONDS = 5.0
"""Least time between two attempts at a server for which the patience is spent."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


@dataclass
class _Outage:
    since: float
    error: Exception
    last_failure: float
    is_spent: bool = False
    is_told: bool = False


class Patience:
    """How a process waits for what does not answer: for how long, whom it tells, and what ends the wait.

    All parts of a process share one, so that an outage is waited for once, whoever asks: when its time is spent, further calls
    fail at once until one is answered again. Threads may share it too.
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        notify: Callable[[str], None] = log.warning,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with no outage known.

        Args:
            seconds: for one outage; None for ``PATIENCE_SECONDS``.
            notify: told of each outage, within 5 seconds: "s3://bucket does not answer; waiting until 20:41".
            should_stop: whether the process is to stop: then it waits for nothing but a hiccup.
        """
        self.seconds = PATIENCE_SECONDS if seconds is None else seconds
        self.should_stop = should_stop
        self.notify = notify
        self._outages: dict[str, _Outage] = {}
        self._lock = threading.Lock()

    def retry(
        self, call: Callable[[], Answer], *, when: Callable[[Exception], bool], reason: str, waits: bool = True
    ) -> Answer:
        """The answer of ``call``, which is called again while it fails with an error that ``when`` accepts.

        Args:
            call: may be called many times.
            when: whether an error means that there was no answer; every other one is an answer.
            reason: what a user is told to wait for; the same for all calls that wait for the same thing.
            waits: whether there is a second attempt. Of a first that fails, the user is told all the same.

        Raises:
            Exception: that of the last attempt, once the patience is spent or the process is to stop.
        """
        outage = self._outages.get(reason)
        if outage is not None and outage.is_spent and time.monotonic() - outage.last_failure < _SPENT_SECONDS:
            raise outage.error
        began = first_failure = None
        pause, longest = _PAUSE_SECONDS
        while True:
            attempted = time.monotonic()
            try:
                answer = call()
            except Exception as error:
                if not when(error):
                    self._outages.pop(reason, None)
                    raise
                began, first_failure = began or attempted, first_failure or time.monotonic()
                if self._is_over(reason, error, began, first_failure) or not waits or not self._sleep(pause, began):
                    raise
            else:
                self._outages.pop(reason, None)
                return answer
            pause = min(2 * pause, longest)

    def _is_over(self, reason: str, error: Exception, began: float, first_failure: float) -> bool:
        """Note that an attempt has failed, and tell of it where it is time; whether it was the last one."""
        now = time.monotonic()
        with self._lock:
            outage = self._outages.setdefault(reason, _Outage(first_failure, error, now))
            outage.since = min(outage.since, first_failure)  # where others were answered meanwhile, this call was not
            outage.error, outage.last_failure = error, now
            outage.is_spent = now - outage.since >= self.seconds
            is_hiccup = now - min(outage.since, began) < _HICCUP_SECONDS
            if outage.is_spent or (self.should_stop() and not is_hiccup):
                return True
            is_news = not outage.is_told and not is_hiccup
            outage.is_told |= is_news
        if is_news:
            end = time.localtime(time.time() + outage.since + self.seconds - now)
            self.notify(f"{reason}; waiting until {time.strftime('%H:%M', end)}")
        return False

    def _sleep(self, seconds: float, began: float) -> bool:
        """Wait; False as soon as the process is to stop, and this is no hiccup."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if now - began >= _HICCUP_SECONDS and self.should_stop():
                return False
            time.sleep(min(end - now, 0.1))
        return True
