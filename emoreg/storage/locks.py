"""One holder at a time, of a key or of a whole study. What a holder that died had, others may have.

File locks, which the operating system takes from a process that dies, serve whoever sees a folder. An object store has none,
nor have some file systems: there the driver of a study leaves a token and says every few seconds that it lives; one that meets
another's token has lost its study, and writes nothing more.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from emoreg.errors import StorageError
from emoreg.storage.files import Files, is_without_locks, lock_file
from emoreg.storage.permissions import make_folder, share
from emoreg.storage.retry import Patience
from emoreg.storage.sealed import seal, unseal

_DRIVER = ".driver.json"
_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_STALE_SECONDS = 20.0
"""A driver whose heart has not beaten for so long is dead, or will find that it has lost its study."""
_SETTLE_SECONDS = 1.0
"""After which a token stands, of two drivers that began at one moment."""
_CHECK_SECONDS = 1.0
_POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


class Locks(Protocol):
    """One holder a key at a time, until it releases it or its process ends, in whatever way."""

    def try_acquire(self, key: str) -> bool:
        """Take the lock of ``key`` if nobody has it, this object included; at once."""

    def release(self, key: str) -> None:
        """Give the lock of ``key`` back."""


class FileLocks:
    """Locks by files. A ``Locks``."""

    def __init__(self, folder: Path) -> None:
        """Lock by files in ``folder``: shared by all processes that see it, also by NFS.

        Where the file system has no locks: shared by the processes of this user on this machine.
        """
        self._folder = folder
        self._local = _local_folder(str(folder))
        self._held: dict[str, BinaryIO] = {}

    @classmethod
    def of(cls, files: Files) -> FileLocks:
        """The locks of a store: in its own folder or, for an object store, in one of this user on this machine."""
        return cls(_local_folder(files.location) if files.folder is None else files.folder / ".locks")

    def try_acquire(self, key: str) -> bool:
        """Take the lock of ``key`` if nobody has it, this object included; at once."""
        try:
            lock = _try_lock(self._folder / f"{key}.lock")
        except OSError as error:
            if not is_without_locks(error) or self._folder == self._local:
                raise
            log.info("%s has no file locks: processes of this machine alone share pre-training that runs", self._folder)
            self._folder = self._local
            return self.try_acquire(key)
        if lock is not None:
            self._held[key] = lock
        return lock is not None

    def release(self, key: str) -> None:
        """Give the lock of ``key`` back."""
        self._held.pop(key).close()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of ``path``; where the file system has no locks, nothing is waited for."""
    with _open_lock(path) as stream:
        lock_file(stream, fcntl.LOCK_EX)
        yield


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder, which is made where it is missing, has file locks."""
    path = folder / f".check.{secrets.token_hex(4)}"
    try:
        with _open_lock(path) as stream:
            return lock_file(stream, fcntl.LOCK_EX)
    finally:
        path.unlink(missing_ok=True)


def _try_lock(path: Path) -> BinaryIO | None:
    """The open file, locked until it is closed; None where it is locked already."""
    while True:
        stream = _open_lock(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(stream.fileno()).st_nlink:
                return stream
        except BlockingIOError:
            stream.close()
            return None
        except OSError:
            stream.close()
            raise
        stream.close()  # removed before it was locked, as by a cleaner of temporary folders


def _local_folder(place: str) -> Path:
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"emoreg-locks-{os.getuid()}" / name


def _open_lock(path: Path) -> BinaryIO:
    make_folder(path.parent)
    try:
        stream = open(path, "ab")  # noqa: SIM115 - NFS locks only what is open for writing
    except PermissionError:
        return open(path, "rb")
    share(path)
    with suppress(OSError):
        os.utime(stream.fileno())  # cleaners of temporary folders leave what is young
    return stream


class Fence:
    """Whether a driver still has its study where there are no file locks. Workers build their own, from the driver's token."""

    def __init__(self, files: Files, token: str | None) -> None:
        """Stand before the study's folder.

        Args:
            files: the study's folder.
            token: the driver's; None where it has a file lock, which nobody can lose.
        """
        self.token = token
        self._files = files
        self._held_at = -float("inf")
        self._loss: str | None = None

    def check(self) -> None:
        """Do nothing where the driver has its study; asked before every write, it looks at most once a second.

        Raises:
            StorageError: where another driver has, or had, the study.
            OSError: where the storage does not answer.
        """
        if self.token is not None and (self._loss is not None or _now() - self._held_at > _CHECK_SECONDS):
            self.look(self._files)

    def look(self, files: Files) -> None:
        """Do the same now, asking ``files``."""
        now = _now()
        holder = None if self._loss is not None else _read(files)
        if holder is None:
            self.lose("another driver had it meanwhile")
        elif holder.token != self.token:
            self.lose(f"another driver has it now, on {holder.who}")
        self._held_at = now

    def lose(self, loss: str) -> None:
        """Know from now on that the study is lost, and how; and raise StorageError."""
        self._loss = self._loss or loss
        raise StorageError(
            f"Let the other driver of {self._files.uri!r} end, then run the same command again: this one stood still for a "
            f"while, and {self._loss}. It stores nothing more"
        )


def study_lock(files: Files, patience: Patience | None = None) -> AbstractContextManager[Fence]:
    """Hold a study's folder, within, for one driver.

    Args:
        files: the study's folder.
        patience: tells of a driver that died where there are no file locks, for which 20 seconds are waited, and ends that.

    Raises:
        StorageError: where another driver holds it.
    """
    if files.folder is not None and has_locks(files.folder):
        return _lock_folder(files)
    return _hold_token(files, patience or Patience())


def is_held(files: Files) -> bool:
    """Whether a driver runs the study in a folder now. No driver is disturbed."""
    if files.folder is not None and _is_locked(files.folder / ".lock"):
        return True
    holder = _read(files)
    return holder is not None and not holder.is_dead and time.time() - holder.beat < _STALE_SECONDS


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:  # for a moment: nothing else sees the locks of other machines
            lock_file(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@contextmanager
def _lock_folder(files: Files) -> Iterator[Fence]:
    assert files.folder is not None
    end = _now() + 0.5  # ``is_held`` may have it for a moment
    while (lock := _try_lock(files.folder / ".lock")) is None:
        if _now() > end:
            raise _refusal(files, "")
        time.sleep(0.05)
    with lock:
        yield Fence(files, None)


@contextmanager
def _hold_token(files: Files, patience: Patience) -> Iterator[Fence]:
    before = _read(files)
    if before is not None and not before.is_dead:
        _wait_for_silence(files, before, patience)
    own = _Holder.of_this_process()
    own.write(files)
    time.sleep(_SETTLE_SECONDS)
    holder = _read(files)
    if holder is None or holder.token != own.token:
        raise _refusal(files, "" if holder is None else holder.who)
    fence = Fence(files, own.token)
    has_ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(files.impatient(), own, fence, has_ended), name="driver's heart", daemon=True)
    heart.start()
    try:
        yield fence
    finally:
        has_ended.set()
        heart.join()
        try:
            with suppress(StorageError):
                fence.look(files)
                files.remove(_DRIVER)
        except OSError as error:  # nobody trusts it once it has stood still for a while
            log.warning("%s could not be told that the study has ended: %s", files.uri, error)


def _wait_for_silence(files: Files, first: _Holder, patience: Patience) -> None:
    """Come back once a driver has said nothing for so long that it must be dead. What two clocks show is never compared."""
    patience.notify(
        f"{files.uri} was last run on {first.who}: waiting up to {_STALE_SECONDS:.0f} seconds to see whether it still is"
    )
    since = asked = _now()
    while asked - since < _STALE_SECONDS:
        found = _read(files)
        if found is None:
            return
        if found != first or patience.should_stop():
            raise _refusal(files, found.who)
        time.sleep(_POLL_SECONDS)
        before, asked = asked, _now()
        if asked - before > _STALE_SECONDS / 2:  # the store did not answer: perhaps not to the driver either
            since = asked


def _beat(files: Files, own: _Holder, fence: Fence, has_ended: threading.Event) -> None:
    """Say every few seconds that a driver lives, until it has ended or lost its study.

    It looks more often than it says so: thus an outage is told soon, also where only workers have met it.
    """
    beat = _now()
    while not has_ended.wait(min(_LOOK_SECONDS, _BEAT_SECONDS)):
        began = _now()
        try:
            fence.look(files)
            if began - beat >= _BEAT_SECONDS:
                dataclasses.replace(own, beat=time.time()).write(files)
                beat = began
                if _now() - began > _STALE_SECONDS - _BEAT_SECONDS:  # another may have begun between the look and the write
                    fence.lose("another driver may have it now")
        except OSError:  # the next look may come through
            continue
        except StorageError:  # who writes next hears of it
            return


def _refusal(files: Files, who: str) -> StorageError:
    return StorageError(
        "Wait for the other driver to end, or give this study another --name: a study has one driver at a time, but another "
        f"process is running {files.uri!r}{who and f' on {who}'}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Holder:
    """The driver of a study that has no file lock, as it says itself.

    Attributes:
        kernel: which one runs it, and in which namespace its process has its number; "" where that is not known.
        started: start of the process, in ticks of that kernel.
        beat: when it last said that it lives, in seconds since 1970: for ``is_held`` alone.
    """

    token: str
    host: str
    process: int
    kernel: str
    started: int | None
    beat: float

    @classmethod
    def of_this_process(cls) -> _Holder:
        return cls(
            token=secrets.token_hex(8),
            host=platform.node(),
            process=os.getpid(),
            kernel=_kernel(),
            started=_start_of(os.getpid()),
            beat=time.time(),
        )

    @property
    def who(self) -> str:
        return f"{self.host}, process {self.process}"

    @property
    def is_dead(self) -> bool:
        """Whether that is certain: its kernel is this one, and has no such process any more."""
        if not self.kernel or self.kernel != _kernel():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        started = _start_of(self.process)
        return started is not None and started != self.started

    def write(self, files: Files) -> None:
        files.write(_DRIVER, seal(dataclasses.asdict(self)))


def _read(files: Files) -> _Holder | None:
    try:
        return _Holder(**unseal(files.read(_DRIVER)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _kernel() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
