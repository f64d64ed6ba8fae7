"""Where Optuna keeps a study: a journal, or a database. Damage is found before anything is read, and outages are waited for."""

from __future__ import annotations

import functools
import inspect
import json
import secrets
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

from emoreg.errors import StorageError
from emoreg.storage.permissions import make_folder, share
from emoreg.storage.retry import Patience
from emoreg.storage.sealed import digest
from emoreg.tuning.postgres import address_of, enable_connect_retry, no_answer, reason_of, without_password


def open_journal(path: Path) -> optuna.storages.BaseStorage:
    """A journal, begun or taken up again.

    Raises:
        StorageError: for one that cannot be used, or is not as it was written.
    """
    # Absolute, because Optuna's lock is a symbolic link to this path: one to a relative path dangles, and a lock that a killed
    # driver left behind would then never be released.
    path = path.resolve()
    with _journal_errors(path):
        make_folder(path.parent)
        _drop_torn_line(path)
        backend = _Journal(str(path), _journal_lock(path))
        share(path)
        backend.check()
        return optuna.storages.JournalStorage(backend)


def _journal_lock(path: Path) -> JournalFileSymlinkLock | JournalFileOpenLock:
    """Optuna's own, which is a symbolic link, or its other one where the file system has no links."""
    link = path.with_name(f".{path.name}.{secrets.token_hex(4)}.link")
    try:
        link.symlink_to(path)
        link.unlink()
    except OSError:
        return JournalFileOpenLock(str(path))
    return JournalFileSymlinkLock(str(path))


def check_journal(path: Path) -> None:
    """Read every line of a journal, which is left as it is.

    Raises:
        StorageError: for one that is not as it was written.
    """
    with _journal_errors(path):
        _Journal(str(path)).check()


@contextmanager
def _journal_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            "Mend the permissions of Optuna's journal, or move it away (recorded trials are not run again, the sampler learns "
            f"from them): it must be readable, writable and whole, but {path} is not ({error})"
        ) from error


class _Journal(JournalFileBackend):
    """Optuna's journal, whose lines carry digests of what they say; those of other programs, as optuna-dashboard, do not."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for number, log in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            if log.pop("digest", None) not in (None, digest(log)):
                raise ValueError(f"line {number} does not match its digest")
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        stored = json.loads(json.dumps(logs))  # whose keys are texts
        super().append_logs([{**log, "digest": digest(log)} for log in stored])

    def check(self) -> None:
        """Read every line, the last one too, which Optuna passes over where it cannot be read.

        Raises:
            ValueError: for a line that is not as it was written.
        """
        with open(self._file_path, "rb") as stream:
            num_lines = sum(1 for _ in stream)
        if sum(1 for _ in self.read_logs(0)) != num_lines:
            raise ValueError("its last line cannot be read")


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, as a kill in mid-write leaves it: Optuna would append to it and never read on."""
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        text = stream.read()
        end = text.rfind(b"\n") + 1
        if _is_json(text[end:-1]):  # whole but for its end, which no kill has changed
            raise ValueError("its last line does not end as it was written")
        stream.truncate(end)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def open_database(url: str, create: Callable[[optuna.storages.BaseStorage], optuna.Study], patience: Patience) -> optuna.Study:
    """The study that ``create`` begins or takes up again in a database.

    Raises:
        StorageError: for a database that cannot be used, or is not whole.
    """

    def refuse(reason: object, cure: str) -> StorageError:
        return StorageError(f"{cure}: optuna_storage must be a database that can be used, but {shown} is not ({reason})")

    try:
        address = address_of(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = f"{url.partition('://')[0][:20]!r}..."
        raise refuse("it is no database URL", "Write it like sqlite:///study.db or postgresql://user@host/name") from error
    shown = without_password(address)
    is_sqlite = address.get_backend_name() == "sqlite"
    # A file that another process writes to is waited for; a connection that the server closed in between is made again.
    engine = {"connect_args": {"timeout": 60}} if is_sqlite else {"pool_pre_ping": True}
    try:
        with _sqlite_errors(shown) if is_sqlite else nullcontext():
            storage = _RetryingStorage(address.render_as_string(hide_password=False), engine_kwargs=engine)
            storage.patience = patience
            study = create(storage)
            if is_sqlite:
                _check_sqlite(study, storage.engine)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise refuse(
            "its driver is not installed", "Install the driver: pip install -e '.[cluster]' has PostgreSQL's"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise refuse(
            reason_of(error, address), "Check that the server runs and the folder exists, and user, password and name"
        ) from error
    except RuntimeError as error:  # another version's tables
        raise refuse(error, "Run `optuna storage upgrade`, or begin another database") from error
    enable_connect_retry(storage.engine, patience)
    return study


def _check_sqlite(study: optuna.Study, engine: sqlalchemy.Engine) -> None:
    """Read all that Optuna reads. SQLite keeps no digests: ``reconcile`` compares what it says with the records."""
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("PRAGMA quick_check(1)")).scalar()
    if found != "ok":
        raise ValueError(found)
    study.get_trials(deepcopy=False)


@contextmanager
def _sqlite_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.NoSuchModuleError, ImportError):  # locked, or no such folder
        raise
    except Exception as error:  # whatever Optuna makes of damaged rows
        if isinstance(error.__cause__, sqlalchemy.exc.OperationalError):
            raise
        raise StorageError(
            "Move the file away (recorded trials are not run again, the sampler learns from them), or restore it: "
            f"optuna_storage must be a whole database, but {shown} is not ({str(error.__cause__ or error).splitlines()[0]})"
        ) from error


_BROKEN_OFF = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.PendingRollbackError,  # where Optuna by itself tries another query after the former
)


class _Thread(threading.local):
    """What a thread does in a database."""

    is_in_transaction = False


class _RetryingStorage(optuna.storages.RDBStorage):
    """Does a transaction again that the server broke off because it was restarted: it has undone what was begun.

    Where it broke off between committing and saying so, a trial may be added twice. Both are then run, and count.
    """

    patience = Patience()
    thread = _Thread()


def _retrying(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def ask(self: _RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        if self.thread.is_in_transaction:  # which is broken off as a whole: only who began it can begin it again
            return method(self, *args, **kwargs)

        def attempt() -> Any:
            self.thread.is_in_transaction = True
            try:
                return method(self, *args, **kwargs)
            except optuna.exceptions.StorageInternalError as error:
                if isinstance(error.__cause__, _BROKEN_OFF):
                    raise error.__cause__ from error  # as the study's other connections tell it, which share the outage
                raise
            finally:
                self.thread.is_in_transaction = False

        return self.patience.retry(
            attempt, when=lambda error: isinstance(error, _BROKEN_OFF), reason=no_answer(self.engine.url)
        )

    return ask


for _name, _method in vars(optuna.storages.RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__"):
        setattr(_RetryingStorage, _name, _retrying(_method))
