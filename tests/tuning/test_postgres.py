from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from emoreg.errors import StorageError
from emoreg.tuning import postgres as module
from emoreg.tuning.postgres import DatabaseLeases, make_ready

HOLD = """
import sys, time
from emoreg.tuning import postgres as database
database.LEASE_SECONDS = float(sys.argv[2])
leases = database.DatabaseLeases(sys.argv[1], "study")
assert leases.try_acquire("a")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def database(database: str) -> str:
    make_ready(database)
    make_ready(database)
    return database


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that a lease of a dead process stands."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)
    return 1.0


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never came to hold"
    return time.monotonic() - started


def test_one_holder_at_a_time(database: str) -> None:
    first, second = DatabaseLeases(database, "study"), DatabaseLeases(database, "study")
    assert first.try_acquire("a")
    assert not first.try_acquire("a")
    assert not second.try_acquire("a")
    assert second.try_acquire("b")
    assert DatabaseLeases(database, "another study").try_acquire("a")
    first.release("a")
    assert second.try_acquire("a")


def test_a_lease_is_kept_for_as_long_as_its_process_lives(database: str, quick: float) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, database, str(quick)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        other = DatabaseLeases(database, "study")
        with pytest.raises(AssertionError, match="never"):
            wait_until(lambda: other.try_acquire("a"), seconds=4 * quick)
        holder.kill()
        assert wait_until(lambda: other.try_acquire("a")) < 4 * quick


def test_turns_do_not_overlap_and_end_with_an_error(database: str) -> None:
    leases = [DatabaseLeases(database, "study") for _ in range(3)]
    inside: list[int] = []
    most = 0

    def work(own: DatabaseLeases, number: int) -> None:
        nonlocal most
        for _ in range(5):
            with own.turn(), own.turn():
                inside.append(number)
                most = max(most, len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(own, number)) for number, own in enumerate(leases)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with pytest.raises(ZeroDivisionError), leases[0].turn():
        _ = 1 / 0
    with leases[1].turn():
        pass


def test_a_restart_of_the_server_takes_no_lease(database: str, postgresql: Any, quick: float) -> None:
    holder, other = DatabaseLeases(database, "study"), DatabaseLeases(database, "study")
    assert holder.try_acquire("a")
    with other.turn():  # it ends with the server, quietly
        postgresql.stop()
        time.sleep(2 * quick)  # longer than a lease stands
        postgresql.start()
    taken = []
    wait_until(lambda: taken.append(other.try_acquire("a")) or len(taken) > 50)
    assert not any(taken)
    holder.release("a")
    assert other.try_acquire("a")


def test_an_unusable_database_is_named_without_its_password(database: str) -> None:
    with pytest.raises(StorageError, match=r"postgres:\*\*\*@127.0.0.1.*nowhere.* check that the server runs") as refused:
        make_ready(database.rpartition("/")[0] + "/nowhere")
    assert "secret" not in str(refused.value)
