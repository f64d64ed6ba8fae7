"""PostgreSQL under a study: connections on which nobody is waited for without end, and locks between drivers.

A driver that stands still holds no other up: the server ends its transactions within seconds. A server that stands still, which
keeps connections open and takes new ones, is found out. A lock is a row that its holder's process renews every few seconds, and
that others may take once it has run out: by the server's clock, and never in the first seconds after the server's start, while
holders could not reach it.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from emoreg.config import without_secrets
from emoreg.errors import StorageError
from emoreg.storage.retry import Patience

LEASE_SECONDS = 15.0
"""How long the locks of a dead process stand."""
_SILENT_SECONDS = 2
_KEEPALIVES = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
_SESSION = "set lock_timeout = '4s'; set idle_in_transaction_session_timeout = '15s'"

_TABLE = """
create table if not exists emoreg_leases (
  scope text, key text, holder text not null, expires timestamptz not null, primary key (scope, key)
)"""
_ACQUIRE = """
insert into emoreg_leases values (:scope, :key, :holder, now() + make_interval(secs => :seconds))
on conflict (scope, key) do update set holder = excluded.holder, expires = excluded.expires
where emoreg_leases.holder = excluded.holder
   or emoreg_leases.expires < now() and pg_postmaster_start_time() < now() - make_interval(secs => :seconds)
returning key"""
_RENEW = "update emoreg_leases set expires = now() + make_interval(secs => :seconds) where holder = :holder returning key"
_RELEASE = "delete from emoreg_leases where scope = :scope and key = :key and holder = :holder returning key"


def is_postgresql(url: str | None) -> bool:
    """Whether a study's history is in PostgreSQL, where several drivers may share it."""
    return url is not None and url.startswith("postgresql")


def address_of(url: str) -> sqlalchemy.URL:
    """The database that a URL names; for PostgreSQL with the driver that emoreg installs, where it names none.

    Raises:
        ValueError, sqlalchemy.exc.ArgumentError: for what is no URL.
    """
    address = sqlalchemy.engine.make_url(url)
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


def without_password(address: sqlalchemy.URL) -> str:
    """The URL of a database as it may be shown."""
    return without_secrets(address.render_as_string(hide_password=False))


def reason_of(error: Exception, address: sqlalchemy.URL) -> str:
    """What a database's driver says is wrong, in a line without the password."""
    return without_secrets(str(error.__cause__ or error), address.render_as_string(hide_password=False)).splitlines()[0]


def no_answer(address: sqlalchemy.URL) -> str:
    """What a user is told to wait for: the ``reason`` of every ``Patience.retry`` at a database."""
    return f"{without_password(address)} does not answer"


def no_answer_error(url: str, error: OperationalError) -> StorageError:
    """The error shown when a database has been away for longer than the patience."""
    address = address_of(url)
    return StorageError(
        "Run the same command again when optuna_storage answers; the study goes on from what is recorded: "
        f"{no_answer(address)} ({reason_of(error, address)})"
    )


def enable_connect_retry(engine: sqlalchemy.Engine, patience: Patience) -> None:
    """From now on, wait with patience for a server that takes no connection or, for PostgreSQL, does not answer on one."""
    engine.dispose()  # connections that were made without

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        away, reason = dialect.loaded_dbapi.OperationalError, no_answer(engine.url)

        def attempt() -> Any:
            if dialect.driver == "psycopg":
                return _connect(patience, reason, *arguments, **{"connect_timeout": 4} | _KEEPALIVES | parameters)
            return dialect.connect(*arguments, **parameters)

        return patience.retry(attempt, when=lambda error: isinstance(error, away), reason=reason)


def _connect(patience: Patience, reason: str, *arguments: Any, **parameters: Any) -> Any:
    """A connection to PostgreSQL, whose server is asked on another one whether it lives, where it is silent on this one."""
    import psycopg  # not in every install
    from psycopg.errors import ConnectionTimeout

    def probe() -> None:
        try:
            psycopg.connect(*arguments, **parameters | {"connect_timeout": _SILENT_SECONDS}).close()
        except ConnectionTimeout:
            raise
        except psycopg.OperationalError:  # an answer too
            return

    def watched(answer: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """``answer``, which is asked several times a second for what has come."""
        heard = time.monotonic()
        try:
            state = next(answer)
            while True:
                has_come = yield state
                if has_come:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENT_SECONDS:
                    patience.retry(probe, when=lambda error: isinstance(error, ConnectionTimeout), reason=reason)
                    heard = time.monotonic()
                state = answer.send(has_come)
        except StopIteration as end:
            return end.value

    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().wait(watched(gen), *args, **kwargs)
            except ConnectionTimeout:
                self.close()
                raise

    connection = Connection.connect(*arguments, **parameters)
    connection.execute(_SESSION)
    connection.commit()
    return connection


def create_table(url: str) -> None:
    """Give a database its table of locks, if it has none.

    Raises:
        StorageError: for a database that cannot be used.
    """
    address = address_of(url)
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("select pg_advisory_xact_lock(hashtext('emoreg'))")  # two at once would be one error
            connection.exec_driver_sql(_TABLE)
    except (SQLAlchemyError, ImportError) as error:
        raise StorageError(
            "Check that the server of optuna_storage runs, and user, password and name: "
            f"{without_password(address)} cannot be used ({reason_of(error, address)})"
        ) from error


class PostgresLocks:
    """Locks in PostgreSQL. A ``Locks``."""

    def __init__(self, url: str, scope: str, patience: Patience) -> None:
        """Lock within one scope, apart from the equal keys of others, in a database that has its table."""
        self._scope = scope
        self._holder = f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}"
        # A connection for each statement: hundreds of workers must not keep one each.
        self._engine = sqlalchemy.create_engine(address_of(url), poolclass=sqlalchemy.NullPool)
        enable_connect_retry(self._engine, patience)
        self._patience = patience
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._heart: threading.Thread | None = None

    def try_acquire(self, key: str) -> bool:
        """Take the lock of ``key`` if nobody has it, this object included."""
        if self.has(key) or not self._execute(_ACQUIRE, key=key, seconds=LEASE_SECONDS):
            return False
        with self._lock:
            self._held.add(key)
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="lock renewal", daemon=True)
                self._heart.start()
        return True

    def has(self, key: str) -> bool:
        """Whether this object has the lock of ``key``, as far as it knows."""
        with self._lock:
            return key in self._held

    def release(self, key: str) -> None:
        """Give the lock of ``key`` back. Where the server is away, it runs out by itself."""
        with self._lock:
            self._held.discard(key)
        with suppress(SQLAlchemyError):
            self._execute(_RELEASE, key=key)

    def close(self) -> None:
        """Give back what is held."""
        for key in tuple(self._held):
            self.release(key)

    def renew(self) -> None:
        """Say that this process lives, and find out which locks others have taken because it had not said so."""
        with self._lock:
            held = set(self._held)
        kept = self._execute(_RENEW, seconds=LEASE_SECONDS)
        with self._lock:
            self._held -= held - kept

    def _beat(self) -> None:
        while True:
            time.sleep(LEASE_SECONDS / 3)
            with self._lock:
                if not self._held:
                    self._heart = None
                    return
            with suppress(SQLAlchemyError):  # a server that was away for long: see the top
                self.renew()

    def _execute(self, statement: str, **values: object) -> set[str]:
        """The keys of the rows that a statement changed. Done again where the server goes away in its middle: it bears that."""

        def attempt() -> set[str]:
            with self._engine.begin() as connection:
                own = {"scope": self._scope, "holder": self._holder}
                return set(connection.scalars(sqlalchemy.text(statement), own | values))

        reason = no_answer(self._engine.url)
        return self._patience.retry(attempt, when=lambda error: isinstance(error, OperationalError), reason=reason)
