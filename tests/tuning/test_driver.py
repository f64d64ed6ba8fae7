from __future__ import annotations

import signal

import pytest

from emoreg.config import ResourcesConfig
from emoreg.tuning.driver import Stop


def test_the_second_signal_leaves_at_once_whoever_else_has_asked() -> None:
    stop = Stop(ResourcesConfig())
    stop.ask()  # the driver itself, for too many faults: trials save
    stop.ask(signal.SIGINT)  # the first signal asks for no more than that
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)


def test_only_sigterm_has_an_end() -> None:
    for number, is_overdue in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        stop = Stop(ResourcesConfig(grace_seconds=1e-9))
        stop.ask(number)
        assert stop.is_overdue is is_overdue
