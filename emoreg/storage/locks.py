"""Leases of trunks: who may pre-train which one. A holder that dies gives its leases back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from emoreg.storage.files import Files


class Leases(Protocol):
    """One holder a key at a time, until it releases it or its process ends, in whatever way."""

    def try_acquire(self, key: str) -> bool:
        """Take the lease of ``key`` if nobody has it, this object included; at once."""

    def release(self, key: str) -> None:
        """Give the lease of ``key`` back."""


class Claims(Leases, Protocol):
    """Which driver of a study runs which trial, and whose turn it is to read and write what they share."""

    def turn(self) -> AbstractContextManager[None]:
        """Within, no other driver has its turn. It may be taken within itself."""


class OnlyDriver:
    """Of a study that has one driver. A ``Claims``."""

    def try_acquire(self, key: str) -> bool:
        """Nobody else has it."""
        return True

    def release(self, key: str) -> None:
        """Nobody waits for it."""

    def turn(self) -> AbstractContextManager[None]:
        """It is always this driver's."""
        return nullcontext()


class FileLeases:
    """Leases by file locks, which the operating system takes from a process that dies. A ``Leases``."""

    def __init__(self, folder: Path) -> None:
        """Lease by lock files in ``folder``: shared by all processes that see it, also by NFS."""
        self._folder = folder
        self._held: dict[str, FileLock] = {}

    @classmethod
    def of(cls, files: Files) -> FileLeases:
        """The leases of a store: in its own folder or, for an object store, in one of this user on this machine."""
        if files.folder is not None:
            return cls(files.folder / ".locks")
        name = hashlib.sha256(files.place.encode()).hexdigest()[:16]
        return cls(Path(tempfile.gettempdir()) / f"emoreg-leases-{os.getuid()}" / name)

    def try_acquire(self, key: str) -> bool:
        """Take the lease of ``key`` if nobody has it, this object included; at once."""
        if key in self._held:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / f"{key}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        self._held[key] = lock
        return True

    def release(self, key: str) -> None:
        """Give the lease of ``key`` back."""
        self._held.pop(key).release()
