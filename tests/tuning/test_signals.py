from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emoreg.tuning.signals import Stop, signals_blocked, stop_on_signals
from tests.helpers.waiting import PATIENCE

INSISTENT = (signal.SIGINT, signal.SIGTERM)
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _as_in_a_shell() -> Iterator[None]:
    """Whatever the test's own parent ignores: nohup, for one."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in WARNINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [*INSISTENT, *WARNINGS])
@pytest.mark.parametrize("second", INSISTENT)
def test_the_first_signal_asks_and_the_second_leaves(first: signal.Signals, second: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in (*INSISTENT, *WARNINGS)]
    asked: list[int] = []
    with stop_on_signals(asked.append):
        signal.raise_signal(first)
        assert asked == [first]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert asked == [first]
    assert [signal.getsignal(number) for number in (*INSISTENT, *WARNINGS)] == before


@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_that_comes_again_changes_nothing(number: signal.Signals) -> None:
    stop = Stop()
    with stop_on_signals(stop.ask), stop_on_signals(stop.ask):
        for _ in range(3):  # a lost terminal sends SIGHUP twice: its shell does, and the kernel
            signal.raise_signal(number)
        stop.ask(number)
        assert stop.is_asked


def test_under_nohup_a_lost_terminal_changes_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked: list[int] = []
    with stop_on_signals(asked.append):
        signal.raise_signal(signal.SIGHUP)
    assert asked == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


SAVES = """
import sys
from emoreg.tuning.signals import Stop, stop_on_signals
stop = Stop()
with stop_on_signals(stop.ask):
    print("running", flush=True)
    while not stop.is_asked:
        pass
    print("stopping", flush=True)  # to a terminal that is gone
    print("stopping", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("saved")
"""


def test_what_is_printed_once_the_terminal_is_lost_breaks_nothing(tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", SAVES, str(tmp_path / "file")])
    assert b"running" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "file").read_text() == "saved"


def test_what_is_started_while_they_are_blocked_outlives_a_signal_to_the_whole_group() -> None:
    with signals_blocked():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*WARNINGS} == set()
    for number in WARNINGS:
        os.killpg(child.pid, number)
    child.communicate(b"\n", timeout=PATIENCE)
    assert child.returncode == 0


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


@pytest.mark.parametrize("number", [*INSISTENT, *WARNINGS])
def test_only_a_stop_by_ctrl_c_has_no_end(number: signal.Signals) -> None:
    stop = Stop(grace_seconds=1e-9)
    stop.ask(number)
    assert stop.is_overdue is (number != signal.SIGINT)


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
