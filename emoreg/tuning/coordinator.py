"""Between the drivers of one study: which runs what, and whose turn it is to change what they share.

A study has one driver at a time, unless its history is in PostgreSQL: then any number may join, from anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from emoreg.config import StudyConfig
from emoreg.errors import StorageError
from emoreg.storage.files import Files
from emoreg.storage.locks import study_lock
from emoreg.storage.retry import Patience
from emoreg.storage.working_copy import WorkingCopy, join
from emoreg.tuning.postgres import PostgresLocks, create_table, is_postgresql

_POLL_SECONDS = 5.0
_TURN = "turn"

log = logging.getLogger(__name__)


class Coordinator:
    """What a driver asks of the others: here, as a driver that is alone. Within its context, it holds the study.

    Attributes:
        copy: of the study's folder, with what a driver goes on from.
        patience: with the study's storage and database; for all that this process asks of them.
        token: with which workers build their ``locks.Fence``; None where this driver cannot lose the study.
        is_alone: whether no other driver of the study can be living.
        database: where drivers meet, if the study may have several; None where it has one.
    """

    copy: WorkingCopy
    is_alone = True
    database: str | None = None

    def __init__(self, config: StudyConfig, patience: Patience) -> None:
        self._config = config
        self.patience = patience
        self.token: str | None = None
        self._end = ExitStack()
        self._files = Files(join(config.storage, config.name), patience=patience)

    def __enter__(self) -> Self:
        with ExitStack() as end:
            self._hold(end)
            self._end = end.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.close()

    def _hold(self, end: ExitStack) -> None:
        self._fence = end.enter_context(study_lock(self._files, self.patience))
        self.token = self._fence.token
        self.copy = end.enter_context(WorkingCopy(self._files, check=self.check))
        self.copy.pull("study.json", "records", "optuna.journal")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only driver of the study, within. May be taken within itself.

        Entering brings ``study.json`` and the records up to what others left; leaving stores the records.

        Raises:
            StorageError: where another driver does not end its turn, or this one has lost its own.
        """
        self.check()
        yield

    def claim(self, identity: str) -> bool:
        """Whether this driver may run a trial, now or already. Others may once it releases the trial, or dies."""
        return True

    def release(self, identity: str) -> None:
        """Let other drivers run a trial."""

    def others_changed(self) -> bool:
        """Whether others may have changed what they share since this driver's last turn; may be asked often."""
        return False

    def check(self) -> None:
        """Do nothing while this driver has its study, or its turn; to be called before it writes what others write too.

        Raises:
            StorageError: where it has lost them to another driver.
        """
        self._fence.check()


class PostgresCoordinator(Coordinator):
    """Joins a study that may have several drivers."""

    is_alone = False

    def _hold(self, end: ExitStack) -> None:
        self.database = self._config.optuna_storage
        assert self.database is not None
        create_table(self.database)
        self._locks = PostgresLocks(self.database, f"study {self._config.name}", self.patience)
        end.callback(self._locks.close)
        self.copy = end.enter_context(WorkingCopy(self._files, check=self.check))
        self._turns = Patience(self.patience.seconds, notify=self.patience.notify)  # a stop needs turns too
        self._has_turn = False
        with self.turn():
            pass

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See ``Coordinator``."""
        if self._has_turn:
            self.check()
            yield
            return
        self._take_turn()
        try:
            self.copy.pull("study.json", "records")
            yield
            self.check()
            self.copy.push("records")
        finally:
            self._has_turn = False
            self._next_poll = time.monotonic() + _POLL_SECONDS
            self._locks.release(_TURN)

    def _take_turn(self) -> None:
        def take() -> None:
            if not self._locks.try_acquire(_TURN):
                raise TimeoutError

        reason = f"another driver of study {self._config.name!r} has its turn"
        try:
            self._turns.retry(take, when=lambda error: isinstance(error, TimeoutError), reason=reason)
        except TimeoutError as error:
            raise StorageError(f"Look for the driver that does not go on, and end it: {reason}, and does not end it") from error
        self._has_turn = True

    def claim(self, identity: str) -> bool:
        """See ``Coordinator``."""
        return self._locks.has(identity) or self._locks.try_acquire(identity)

    def release(self, identity: str) -> None:
        """See ``Coordinator``."""
        self._locks.release(identity)

    def others_changed(self) -> bool:
        """See ``Coordinator``."""
        return time.monotonic() >= self._next_poll

    def check(self) -> None:
        """See ``Coordinator``."""
        if self._has_turn:
            self._locks.renew()
            if not self._locks.has(_TURN):
                raise StorageError(
                    f"Run the same command again: this driver of study {self._config.name!r} stood still within its turn, and "
                    "another one has had it since; it stores nothing more"
                )


def coordinate(
    config: StudyConfig, *, notify: Callable[[str], None] = log.warning, should_stop: Callable[[], bool] = lambda: False
) -> Coordinator:
    """The coordinator that fits a study.

    Args:
        notify: told of everything that is waited for.
        should_stop: whether the study is to stop: then nothing is waited for.
    """
    coordinator = PostgresCoordinator if is_postgresql(config.optuna_storage) else Coordinator
    return coordinator(config, Patience(notify=notify, should_stop=should_stop))
