"""Files that are whole or absent: in a folder of this machine or of NFS, or in an object store (S3, GCS), by pyarrow."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from emoreg.config import is_percent_encoded, without_secrets
from emoreg.errors import ConfigError, StorageError
from emoreg.storage.permissions import make_folder, share, user_name
from emoreg.storage.retry import Patience

Answer = TypeVar("Answer")

_UNUSABLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "it is read-only",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "its file server has forgotten it",
    errno.ETIMEDOUT: "its file server does not answer",
}
"""What makes a storage unusable, by the number of the error."""
_MAY_COME_BACK = {errno.ESTALE, errno.ETIMEDOUT}
"""Those of them that another attempt may not meet."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524}  # 524: the kernel's own ENOTSUPP, which NFS lets through
_LOOK_SECONDS = 3600.0
_FINAL = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 4(?!08|29)\d\d")
_SILENT_SECONDS = 3
"""How long one request of an object store may stand still."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream for writing, whose content is ``path`` once the block has ended well, durably; else ``path`` is as it was.

    The folder is made where it is missing. An error of the disk names ``path``.
    """
    make_folder(path.parent)
    temporary, stream = _locked(lambda: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"))
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files that dead writers left in ``folder`` and below, and tell which. Living writers keep theirs."""
    return [path for path in sorted(folder.rglob(".*.tmp")) if _remove_of_the_dead(path)]


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder below ``root``, gone at the end; first goes what processes left there that were killed.

    Cleaners of temporary folders, which remove what was not looked at for days, leave it.
    """
    make_folder(root)
    for lock in root.glob("*.lock"):
        _remove_of_the_dead(lock, lock.with_suffix(""))
    lock, stream = _locked(lambda: root / f"{secrets.token_hex(4)}.lock")
    folder = lock.with_suffix("")
    with stream:
        try:
            make_folder(folder)
            with _looked_at(lock, folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextmanager
def _looked_at(*paths: Path) -> Iterator[None]:
    """Within, the times at which files, and what is in folders, were looked at and their attributes changed stay young."""
    has_ended = threading.Event()

    def look() -> None:
        while not has_ended.wait(_LOOK_SECONDS):
            for path in paths:
                with suppress(OSError):  # gone meanwhile
                    for file in (path, *path.rglob("*")):
                        _look_at(file)

    thread = threading.Thread(target=look, name="scratch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def _look_at(path: Path) -> None:
    with suppress(OSError):
        os.chmod(path, stat.S_IMODE(path.stat().st_mode))
        if path.is_file():
            with open(path, "rb") as stream:
                stream.read(1)


def _locked(name: Callable[[], Path]) -> tuple[Path, BinaryIO]:
    """A new file, locked for as long as its writer lives: ``_remove_of_the_dead`` goes by the lock, on any machine.

    Where the file system has no locks it has none either, and stays if its writer dies.
    """
    while True:
        path = name()
        stream = open(path, "xb")  # noqa: SIM115
        try:
            lock_file(stream, fcntl.LOCK_EX)
        except OSError:
            stream.close()
            path.unlink()
            raise
        if os.fstat(stream.fileno()).st_nlink:
            share(path)
            return path, stream
        stream.close()  # swept away before it was locked


def is_without_locks(error: OSError) -> bool:
    """Whether an error of a lock says that the file system has none: Lustre without -o flock, NFS without its lock server."""
    return error.errno in _NO_LOCKS


def lock_file(stream: BinaryIO, kind: int) -> bool:
    """Lock a file as ``fcntl.flock`` does; False where its file system has no locks."""
    try:
        fcntl.flock(stream, kind)
    except OSError as error:
        if not is_without_locks(error):
            raise
        return False
    return True


def _remove_of_the_dead(path: Path, folder: Path | None = None) -> bool:
    """Remove a file, and a folder with it, unless the file's writer lives."""
    # Gone: its writer has just ended. Blocked: its writer lives. NFS locks only what is open for writing. What cannot be
    # removed now, the next sweep may.
    with suppress(OSError), open(path, "rb+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        path.unlink()
        return True
    return False


def storage_full_error(number: int | None, reason: object) -> StorageError | None:
    """The error shown when storage can take no more, or None where an error's number does not say so.

    Args:
        number: ``errno`` of the error.
        reason: the error, or what is known of it.
    """
    if number not in _UNUSABLE:
        return None
    return StorageError(
        f"Mend the storage and run the same command again, for {_UNUSABLE[number]}: {reason}. What was recorded is whole"
    )


def is_sick(number: int | None) -> bool:
    """Whether an error, by its number, says that a disk is full, read-only or broken: no other attempt will do better."""
    return number in _UNUSABLE.keys() - _MAY_COME_BACK


def refused_error(error: OSError) -> StorageError:
    """The error shown for what the operating system refuses, whatever it is: it names the file."""
    return StorageError(f"Mend what the system refuses and run the same command again: {error}. What was recorded is whole")


@dataclass(frozen=True, slots=True)
class Found:
    """A file: its name, relative to the ``Files`` that found it, with ``/`` between folders, and its size in bytes."""

    name: str
    size: int


class Files:
    """The files below one folder, by names relative to it. Every write is atomic.

    Attributes:
        uri: the folder, without the passwords and keys that a URI may hold: for messages.
        folder: its path, where it lies in a file system of this machine; else None.
        location: the same for every way to write the URI of one folder.
        name: of the folder itself.
        patience: see ``__init__``.
    """

    def __init__(self, uri: str, *, patience: Patience | None = None) -> None:
        """Open a folder, which need not be there yet.

        Args:
            uri: a path, or file://, s3://, gs:// and whatever else pyarrow knows, with its options in the query:
                s3://bucket/path?endpoint_override=host:9000&scheme=http&region=us-east-1.
            patience: with an object store that does not answer, or answers that something broke; None for none.

        Raises:
            StorageError: for a URI that pyarrow cannot use.
            ConfigError: for a path with ``~`` where there is no home.
        """
        self.uri = without_secrets(uri)
        uri = uri if "://" in uri else os.path.abspath(expand(uri))
        if not is_percent_encoded(uri):
            raise StorageError(
                "Write / as %2F, @ as %40 and a blank as %20 in the key of the storage's URI: it must be percent-encoded, but "
                f"that of {uri.partition('://')[0]}://... is not"
            )
        try:
            self._filesystem, root = _open(uri, num_attempts=3 if patience is None else 1)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                "Name a folder as storage, or a URI that pyarrow can open (file:///path, s3://bucket/path, gs://bucket/path): "
                f"{self.uri!r} cannot be used ({without_secrets(str(error), uri).partition(chr(10))[0]})"
            ) from error
        self._root = root.rstrip("/")
        if not self._root:
            raise StorageError(f"Name a bucket or a folder in the storage's URI: {self.uri!r} names none")
        self.folder = Path(self._root) if isinstance(self._filesystem, pafs.LocalFileSystem) else None
        self.location = f"{self._filesystem.type_name}:{self._root}"
        self.name = self._root.rpartition("/")[2]
        self.patience = None if self.folder is not None else patience
        self._waits = True
        self._no_answer = f"{uri.partition('://')[0]}://{self._root.partition('/')[0]} does not answer"

    def impatient(self) -> Files:
        """The same folder for somebody who asks once and waits for nothing; of an outage the user is told all the same."""
        other = copy.copy(self)
        other._waits = False
        return other

    def check(self) -> None:
        """Write a file, read it and remove it.

        Raises:
            StorageError: where that fails.
        """
        name = f".check.{secrets.token_hex(4)}"
        try:
            self.write(name, b"emoreg")
            is_whole = self.read(name).to_pybytes() == b"emoreg"
            self.remove(name)
        except OSError as error:
            raise storage_full_error(error.errno, error) or StorageError(
                f"Mend the permissions of the storage, or name another: it must be writable, but {self.uri!r} is not ({error})"
            ) from error
        if not is_whole:
            raise StorageError(f"Name another storage: it must give back what was written, but {self.uri!r} does not")

    def read(self, name: str) -> pa.Buffer:
        """The content of a file.

        Raises:
            FileNotFoundError: where there is none.
        """

        def version() -> tuple[int | None, int | None] | None:
            if self.folder is not None:
                return None
            info = self._filesystem.get_file_info(self._path(name))
            return info.mtime_ns, info.size

        def read() -> pa.Buffer:
            while True:
                before = version()
                with self._filesystem.open_input_file(self._path(name)) as stream:
                    content = stream.read_buffer()
                # An object that is replaced between the request for its size and that for its content is read cut off.
                if version() == before:
                    return content

        return self._ask(read)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Make ``content`` the file's, whole and durably."""
        if self.folder is not None:
            with replacing(self.folder / name) as stream:
                stream.write(content)
            return

        def write() -> None:
            with self._filesystem.open_output_stream(self._path(name)) as stream:  # there once it is closed, not before
                stream.write(content)

        self._ask(write)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._ask(lambda: bool(self._filesystem.get_file_info(self._path(name)).type == pafs.FileType.File))

    def find(self, folder: str = "", *, deep: bool = True) -> list[Found]:
        """Every file in ``folder``, and where ``deep`` below it, by name; none where there is no such folder."""
        selector = pafs.FileSelector(self._path(folder), recursive=deep, allow_not_found=True)
        infos = self._ask(lambda: self._filesystem.get_file_info(selector))
        start = len(self._root) + 1
        files = [Found(info.path[start:], info.size or 0) for info in infos if info.type == pafs.FileType.File]
        return sorted(files, key=lambda found: found.name)

    def move(self, name: str, new_name: str) -> None:
        """Give a file another name, in place of what has it; nothing happens where the file is gone."""
        if self.exists(name):  # S3 has no error of its own for a file that is gone
            with suppress(FileNotFoundError):
                self._ask(lambda: self._filesystem.move(self._path(name), self._path(new_name)))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._filesystem.delete_file(self._path(name)))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._filesystem.delete_dir(self._path(name)))

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        if self.patience is None:
            return call()
        return self.patience.retry(call, when=_is_unanswered, reason=self._no_answer, waits=self._waits)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def expand(path: str | Path) -> Path:
    """A path with its ``~`` resolved.

    Raises:
        ConfigError: where this process's user has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"Set HOME, or write the path without ~: {str(path)!r} needs a home folder, but {user_name(os.geteuid())} has none"
        ) from error


def _open(uri: str, *, num_attempts: int) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI or a path, and the path in it. Its requests do not stand still for minutes."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), uri
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri:  # else it retries for 15 minutes by itself
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_SILENT_SECONDS}"
    filesystem, root = pafs.FileSystem.from_uri(uri)
    if isinstance(filesystem, pafs.S3FileSystem):
        _, (options,) = filesystem.__reduce__()  # from_uri takes no timeouts
        options["connect_timeout"] = options["request_timeout"] = _SILENT_SECONDS
        options["allow_delayed_open"] = True  # one request for a small file
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=num_attempts)
        filesystem = pafs.S3FileSystem(**options, retry_strategy=retries)
    return filesystem, root


def _is_unanswered(error: Exception) -> bool:
    """Whether an object store did not answer, or answered that something broke."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and not _FINAL.search(str(error))
