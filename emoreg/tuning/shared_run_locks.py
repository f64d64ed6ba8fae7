"""The locks of a study's shared pre-training runs, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from emoreg.storage.files import Files
from emoreg.storage.locks import FileLocks, Locks
from emoreg.storage.retry import Patience


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedRunLocks:
    """Where the locks of a study's shared pre-training runs are. Travels to workers in memory: it may hold passwords.

    Attributes:
        store: URI of the experience store.
        is_cluster: whether trials may run on several machines of one Ray cluster.
        database: where the study's drivers meet, if it may have several.
    """

    store: str = field(repr=False)
    is_cluster: bool
    database: str | None = field(default=None, repr=False)

    def open(self, patience: Patience) -> Locks:
        """The locks, for one process."""
        if self.database is not None:
            from emoreg.tuning.postgres import PostgresLocks  # which takes a while to import, as Ray does

            return PostgresLocks(self.database, f"experience {Files(self.store).location}", patience)
        if self.is_cluster:
            from emoreg.tuning.coordination import ActorLocks

            return ActorLocks(self.store)
        return FileLocks.of(Files(self.store))
