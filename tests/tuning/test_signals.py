from __future__ import annotations

import signal

import pytest

from emoreg.tuning.signals import stop_on_signals

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
