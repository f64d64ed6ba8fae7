from __future__ import annotations

import signal
import threading

import pytest

from emoreg.tuning.signals import Stop, stop_on_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_first_signal_asks_and_the_second_leaves(first: signal.Signals, second: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    asked: list[int] = []
    with stop_on_signals(asked.append):
        signal.raise_signal(first)
        assert asked == [first]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert asked == [first]
    assert [signal.getsignal(number) for number in BOTH] == before


def test_without_a_signal_nobody_is_asked_and_afterwards_they_mean_what_they_did() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # another test's library may have left its own
    try:
        with stop_on_signals(asked.append):
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == []


def test_the_second_signal_leaves_at_once_whoever_else_has_asked() -> None:
    stop = Stop()
    stop.ask()  # the driver itself, for too many faults: trials save
    stop.ask(signal.SIGINT)  # the first signal asks for no more than that
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)


def test_only_sigterm_has_an_end() -> None:
    for number, is_overdue in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        stop = Stop(grace_seconds=1e-9)
        stop.ask(number)
        assert stop.is_overdue is is_overdue


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with stop_on_signals(lambda number: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
