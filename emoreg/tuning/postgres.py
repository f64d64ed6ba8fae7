"""PostgreSQL between the drivers of one study, wherever they run: who has what, and who may write now.

A lease is a row that its holder's process renews every few seconds, and that others may take once it has run out: by the
server's clock, and never in the first seconds after the server's start, while holders could not reach it.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from emoreg.errors import StorageError

LEASE_SECONDS = 15.0
"""How long the leases of a dead process stand."""
PATIENCE_SECONDS = 120.0
"""How long a running study waits for a database that is not there."""
_PAUSE_SECONDS = 0.5
Result = TypeVar("Result")

_TABLE = """
create table if not exists emoreg_leases (
  scope text, key text, holder text not null, expires timestamptz not null, primary key (scope, key)
)"""
_ACQUIRE = text("""
insert into emoreg_leases values (:scope, :key, :holder, now() + make_interval(secs => :seconds))
on conflict (scope, key) do update set holder = excluded.holder, expires = excluded.expires
where emoreg_leases.holder = excluded.holder
   or emoreg_leases.expires < now() and pg_postmaster_start_time() < now() - make_interval(secs => :seconds)
returning holder""")
_RENEW = text("update emoreg_leases set expires = now() + make_interval(secs => :seconds) where holder = :holder")
_RELEASE = text("delete from emoreg_leases where scope = :scope and key = :key and holder = :holder")
_TURN = text("select pg_advisory_xact_lock(hashtext('emoreg'), hashtext(:scope))")


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


def patiently(attempt: Callable[[], Result], is_away: Callable[[Exception], bool]) -> Result:
    """Make an attempt at something, and others for ``PATIENCE_SECONDS`` where it fails because the server is away."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_away(error) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def be_patient(engine: sqlalchemy.Engine) -> None:
    """From now on, wait for the server where it does not take a connection: it may be restarting."""

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> Any:
        away = dialect.loaded_dbapi.OperationalError
        return patiently(lambda: dialect.connect(*arguments, **parameters), lambda error: isinstance(error, away))


def unanswered(url: str, error: OperationalError) -> StorageError:
    """What a user is told of a server that has been away for too long."""
    address = address_of(url)
    return StorageError(
        f"optuna_storage must answer while a study runs, but {address.render_as_string(hide_password=True)} has not for "
        f"{PATIENCE_SECONDS:.0f} seconds ({reason_of(error, address)}): run the same command again when it does; the study "
        "goes on from what is recorded"
    )


def reason_of(error: Exception, address: sqlalchemy.URL) -> str:
    """What a database's driver says is wrong, in a line without the password."""
    return str(error.__cause__ or error).splitlines()[0].replace(str(address.password or "\0"), "***")


def make_ready(url: str) -> None:
    """Give a database its table of leases, if it has none.

    Raises:
        StorageError: for a database that cannot be used.
    """
    address = address_of(url)
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(_TURN, {"scope": "table"})  # two that create it at once would be one error
            connection.execute(text(_TABLE))
    except (SQLAlchemyError, ImportError) as error:
        shown = address.render_as_string(hide_password=True)
        raise StorageError(
            f"optuna_storage must be a database that can be used, but {shown} is not ({reason_of(error, address)}): check that "
            "the server runs, and user, password and name"
        ) from error


class DatabaseLeases:
    """Leases in PostgreSQL. A ``leases.Leases``; also gives turns."""

    def __init__(self, url: str, scope: str) -> None:
        """Lease within one scope: equal keys of other scopes are other leases. The database is made ready for it."""
        address = address_of(url)
        self._scope = scope
        self._holder = f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}"
        # A connection for each statement: hundreds of workers must not keep one each.
        self._engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._renewing: threading.Thread | None = None
        self._is_turn = False
        be_patient(self._engine)

    def try_acquire(self, key: str) -> bool:
        """Take the lease of ``key`` if nobody has it, this object included."""
        with self._lock:
            if key in self._held:
                return False
        if not self._execute(_ACQUIRE, key=key, seconds=LEASE_SECONDS):
            return False
        with self._lock:
            self._held.add(key)
            if self._renewing is None:
                self._renewing = threading.Thread(target=self._renew, name="lease renewal", daemon=True)
                self._renewing.start()
        return True

    def release(self, key: str) -> None:
        """Give the lease of ``key`` back."""
        with self._lock:
            self._held.remove(key)
        self._execute(_RELEASE, key=key)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be alone in the scope: others wait here. It ends with the process, and may be taken within itself."""
        if self._is_turn:
            yield
            return
        with self._engine.connect() as connection:
            connection.execute(_TURN, {"scope": self._scope})
            self._is_turn = True
            try:
                yield
            finally:
                self._is_turn = False
                with suppress(SQLAlchemyError):  # a server that restarted meanwhile has ended the turn itself
                    connection.rollback()

    def _execute(self, statement: sqlalchemy.TextClause, **values: object) -> bool:
        """Whether the statement changed a row. Done again where the server goes away in its middle: it bears that."""

        def attempt() -> bool:
            with self._engine.begin() as connection:
                done = connection.execute(statement, {"scope": self._scope, "holder": self._holder, **values})
                return bool(done.rowcount)

        return patiently(attempt, lambda error: isinstance(error, OperationalError))

    def _renew(self) -> None:
        while True:
            time.sleep(LEASE_SECONDS / 3)
            with self._lock:
                if not self._held:
                    self._renewing = None
                    return
            with suppress(SQLAlchemyError):  # a server that was away for long: see ``_ACQUIRE``
                self._execute(_RENEW, seconds=LEASE_SECONDS)
