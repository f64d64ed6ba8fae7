from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from emoreg.errors import StorageError
from emoreg.storage.retry import Patience
from emoreg.tuning import postgres as module
from emoreg.tuning.postgres import PostgresLocks, address_of, create_table, enable_connect_retry, no_answer_error
from tests.helpers.postgres import PostgreSQL
from tests.helpers.waiting import wait_for

HOLD = """
import sys, time
from emoreg.storage.retry import Patience
from emoreg.tuning import postgres
postgres.LEASE_SECONDS = float(sys.argv[2])
locks = postgres.PostgresLocks(sys.argv[1], sys.argv[3], Patience())
assert locks.try_acquire("a")
print("held", flush=True)
time.sleep(600)
"""
STAND_STILL = """
import os, signal, sys
import sqlalchemy
from emoreg.storage.retry import Patience
from emoreg.tuning import postgres
postgres._SESSION = postgres._SESSION.replace("15s", "1s")
engine = sqlalchemy.create_engine(postgres.address_of(sys.argv[1]))
postgres.enable_connect_retry(engine, Patience())
with engine.begin() as connection:
    connection.exec_driver_sql("update counters set number = number + 1")
    print("within", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture(scope="module")
def database(postgresql: PostgreSQL) -> str:
    """The URL of a database with the table, for all tests."""
    url = postgresql.create("emoreg_locks")
    create_table(url)
    create_table(url)
    return url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that a lock of a dead process stands."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)
    return 1.0


@pytest.fixture
def make_locks(database: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., PostgresLocks]]:
    made: list[PostgresLocks] = []

    def make(scope: str = "study") -> PostgresLocks:
        made.append(PostgresLocks(database, f"{scope} {request.node.name}", Patience()))
        return made[-1]

    yield make
    for locks in made:
        locks.close()


def engine_of(database: str, patience: Patience) -> sqlalchemy.Engine:
    engine = sqlalchemy.create_engine(address_of(database))
    enable_connect_retry(engine, patience)
    return engine


def test_one_holder_at_a_time(make_locks: Callable[..., PostgresLocks]) -> None:
    first, second = make_locks(), make_locks()
    assert first.try_acquire("a")
    assert not first.try_acquire("a")
    assert not second.try_acquire("a")
    assert second.try_acquire("b")
    assert make_locks("another study").try_acquire("a")
    first.release("a")
    assert second.try_acquire("a")
    second.close()
    assert first.try_acquire("a")
    assert first.try_acquire("b")


@pytest.mark.slow
def test_a_lock_is_kept_for_as_long_as_its_process_lives(
    database: str, make_locks: Callable[..., PostgresLocks], quick: float, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, database, str(quick), f"study {name}"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        other = make_locks()
        watched = time.monotonic() + 4 * quick
        wait_for(lambda: other.try_acquire("a") or time.monotonic() > watched)
        assert not other.has("a"), "a living holder lost its lock"
        holder.kill()
        assert wait_for(lambda: other.try_acquire("a")) < 4 * quick


def test_who_stood_still_finds_out_what_others_have_taken(
    make_locks: Callable[..., PostgresLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.2)
    first, other = make_locks(), make_locks()
    for locks in (first, other):
        monkeypatch.setattr(locks, "_beat", lambda: None)  # as processes that stand still
    assert first.try_acquire("a")
    assert first.try_acquire("b")
    wait_for(lambda: other.try_acquire("a"))
    first.renew()
    assert not first.has("a")
    assert first.has("b")
    first.release("a")
    assert other.has("a")
    other.renew()
    assert other.has("a"), "the former holder gave it back"


def test_a_restart_of_the_server_takes_no_lock(
    database: str, make_locks: Callable[..., PostgresLocks], postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 600.0)  # whose heart does not beat in this test
    holder, other = make_locks(), make_locks()
    assert holder.try_acquire("a")
    engine = engine_of(database, Patience())
    with engine.begin() as connection:
        connection.exec_driver_sql("update emoreg_leases set expires = now() - interval '1 hour'")
    engine.dispose()
    postgresql.stop()
    postgresql.start()
    assert not other.try_acquire("a"), "its holder could not reach the server"
    holder.renew()
    assert holder.has("a")


def test_an_unusable_database_is_named_without_its_password(database: str) -> None:
    with pytest.raises(StorageError, match=r"Check that the server .* runs.*postgres:\*\*\*@127.0.0.1.*nowhere") as refused:
        create_table(database.rpartition("/")[0] + "/nowhere")
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_a_server_that_stands_still_is_told_of_waited_for_and_given_up(database: str, postgresql: PostgreSQL) -> None:
    said: list[tuple[float, str]] = []
    patience = Patience(6.0, notify=lambda text: said.append((time.monotonic(), text)))
    engine = engine_of(database, patience)
    with engine.connect() as connection, postgresql.frozen():
        started = time.monotonic()
        with pytest.raises(OperationalError) as error:
            connection.exec_driver_sql("select 1")
        assert time.monotonic() - started < 15
        ((told, text),) = said
        assert told - started < 6
        assert text.startswith("postgresql+psycopg://postgres:***@127.0.0.1")
        again = time.monotonic()
        with pytest.raises(OperationalError):
            engine.connect()
        assert time.monotonic() - again < 1, "what cleans up waited another time"
        shown = str(no_answer_error(database, error.value))
        assert "Run the same command again" in shown
        assert "secret" not in shown
    engine.dispose()


@pytest.mark.slow
def test_a_statement_goes_on_where_the_server_does(database: str, postgresql: PostgreSQL) -> None:
    said: list[str] = []
    engine = engine_of(database, Patience(60, notify=said.append))
    answers: list[int] = []
    with engine.connect() as connection:
        asking = threading.Thread(target=lambda: answers.append(connection.exec_driver_sql("select 7").scalar_one()))
        with postgresql.frozen():
            asking.start()
            wait_for(lambda: bool(said))
        asking.join()
    assert answers == [7]
    engine.dispose()


@pytest.mark.slow
def test_a_slow_statement_is_no_outage(database: str) -> None:
    said: list[str] = []
    engine = engine_of(database, Patience(1.0, notify=said.append))
    with engine.connect() as connection:
        connection.exec_driver_sql("select pg_sleep(5)")
    assert said == []
    engine.dispose()


@pytest.mark.slow
def test_a_stop_ends_the_wait_for_a_server_that_stands_still(database: str, postgresql: PostgreSQL) -> None:
    said: list[str] = []
    engine = engine_of(database, Patience(60, notify=said.append, should_stop=lambda: bool(said)))
    with engine.connect() as connection, postgresql.frozen():
        started = time.monotonic()
        with pytest.raises(OperationalError):
            connection.exec_driver_sql("select 1")
        assert time.monotonic() - started < 10
    engine.dispose()


def test_a_process_that_stands_still_within_a_transaction_holds_nobody_up(database: str) -> None:
    engine = engine_of(database, Patience())
    with engine.begin() as connection:
        connection.exec_driver_sql("create table counters as select 0 as number")
    with subprocess.Popen([sys.executable, "-c", STAND_STILL, database], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "within\n"
        with engine.begin() as connection:  # for 4 seconds: see ``_SESSION``
            connection.exec_driver_sql("update counters set number = number + 10")
        other.kill()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select number from counters").scalar_one() == 10
    engine.dispose()
