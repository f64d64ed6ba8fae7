"""Files that are whole or absent: in a folder of this machine or of NFS, or in an object store (S3, GCS), by pyarrow."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from emoreg.errors import StorageError

UNWRITABLE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
"""Why a storage cannot be written, by the number of the error: what no retry mends."""
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/:@\s]*:[^@\s?]*|[^/@\s]*)@")  # a secret key may hold a slash
_FINAL = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 4\d\d")
_PAUSE_SECONDS = (0.5, 5.0)

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream for writing, whose content is ``path`` once the block has ended well, durably; else ``path`` is as it was.

    The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, stream = _temporary(path)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``path``, locked for as long as its writer lives: ``sweep`` goes by the lock, on any machine."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        stream = open(temporary, "xb")  # noqa: SIM115
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return temporary, stream
        stream.close()  # swept away before it was locked


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files that dead writers left in ``folder`` and below, and tell which. Living writers keep theirs."""
    removed = []
    for path in sorted(folder.rglob(".*.tmp")):
        # Gone: its writer has just ended. Blocked: its writer lives. NFS locks only what is open for writing. What cannot be
        # removed now, the next sweep may.
        with suppress(OSError), open(path, "rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder below ``root``, gone at the end; first goes what processes left there that were killed."""
    root.mkdir(parents=True, exist_ok=True)
    for lock in root.glob("*.lock"):
        with suppress(OSError), open(lock, "rb+") as stream:  # see ``sweep``
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    while True:
        folder = root / secrets.token_hex(4)
        lock = folder.with_suffix(".lock")
        with open(lock, "xb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not os.fstat(stream.fileno()).st_nlink:  # swept away before it was locked
                continue
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink()
            return


@dataclass(frozen=True, slots=True)
class Found:
    """A file: its name, relative to the ``Files`` that found it, with ``/`` between folders, and its size in bytes."""

    name: str
    size: int


class Files:
    """The files below one folder, by names relative to it. Every write is atomic.

    Attributes:
        uri: the folder, without the credentials that a URI may hold: for messages.
        folder: its path, where it lies in a file system of this machine; else None.
        place: the same for every way to write the URI of one folder.
        name: of the folder itself.
    """

    def __init__(self, uri: str, *, patience_seconds: float = 0.0) -> None:
        """Open a folder, which need not be there yet.

        Args:
            uri: a path, or file://, s3://, gs:// and whatever else pyarrow knows, with its options in the query:
                s3://bucket/path?endpoint_override=host:9000&scheme=http&region=us-east-1.
            patience_seconds: how long an object store that does not answer, or answers that something broke, is asked again.

        Raises:
            StorageError: for a URI that pyarrow cannot use.
        """
        self.uri = without_credentials(uri)
        self._patience_seconds = patience_seconds
        try:
            if "://" in uri:
                self._filesystem, self._root = pafs.FileSystem.from_uri(uri)
            else:
                self._filesystem, self._root = pafs.LocalFileSystem(), os.path.abspath(Path(uri).expanduser())
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                f"storage must be a folder, or a URI that pyarrow can open (file:///path, s3://bucket/path, gs://bucket/path), "
                f"but {self.uri!r} cannot be used ({without_credentials(str(error)).partition(chr(10))[0]}): correct it, "
                "or name a folder"
            ) from error
        self._root = self._root.rstrip("/")
        if not self._root:
            raise StorageError(f"a storage's URI must name a bucket or a folder, but {self.uri!r} names none: add it")
        self.folder = Path(self._root) if isinstance(self._filesystem, pafs.LocalFileSystem) else None
        self.place = f"{self._filesystem.type_name}:{self._root}"
        self.name = self._root.rpartition("/")[2]

    def check(self) -> None:
        """Write a file, read it and remove it.

        Raises:
            StorageError: where that fails.
        """
        name = f".check.{secrets.token_hex(4)}"
        try:
            self.write(name, b"emoreg")
            whole = self.read(name).to_pybytes() == b"emoreg"
            self.remove(name)
        except OSError as error:
            raise StorageError(
                f"storage must be writable, but {self.uri!r} is not ({error}): mend its permissions, or name another"
            ) from error
        if not whole:
            raise StorageError(f"storage must give back what was written, but {self.uri!r} does not: name another")

    def read(self, name: str) -> pa.Buffer:
        """The content of a file.

        Raises:
            FileNotFoundError: where there is none.
        """

        def stamp() -> tuple[int | None, int | None]:
            info = self._filesystem.get_file_info(self._path(name))
            return info.mtime_ns, info.size

        def read() -> pa.Buffer:
            while True:
                before = None if self.folder is not None else stamp()
                with self._filesystem.open_input_file(self._path(name)) as stream:
                    content = stream.read_buffer()
                # An object that is replaced between the request for its size and that for its content is read cut off.
                if before is None or stamp() == before:
                    return content

        return self._patiently(read)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Make ``content`` the file's, whole and durably."""
        if self.folder is not None:
            with replacing(self.folder / name) as stream:
                stream.write(content)
            return

        def write() -> None:
            with self._filesystem.open_output_stream(self._path(name)) as stream:  # there once it is closed, not before
                stream.write(content)

        self._patiently(write)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._patiently(lambda: bool(self._filesystem.get_file_info(self._path(name)).type == pafs.FileType.File))

    def find(self, folder: str = "", *, deep: bool = True) -> list[Found]:
        """Every file in ``folder``, and where ``deep`` below it, by name; none where there is no such folder."""
        selector = pafs.FileSelector(self._path(folder), recursive=deep, allow_not_found=True)
        infos = self._patiently(lambda: self._filesystem.get_file_info(selector))
        start = len(self._root) + 1
        files = [Found(info.path[start:], info.size or 0) for info in infos if info.type == pafs.FileType.File]
        return sorted(files, key=lambda found: found.name)

    def move(self, name: str, new_name: str) -> None:
        """Give a file another name, in place of what has it; nothing happens where the file is gone."""
        if self.exists(name):  # S3 has no error of its own for a file that is gone
            with suppress(FileNotFoundError):
                self._patiently(lambda: self._filesystem.move(self._path(name), self._path(new_name)))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._filesystem.delete_file(self._path(name)))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._filesystem.delete_dir(self._path(name)))

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """The answer of an object store, which is asked again for a while where its network or the store itself fails."""
        deadline = time.monotonic() + (0.0 if self.folder is not None else self._patience_seconds)
        pause, longest = _PAUSE_SECONDS
        while True:
            try:
                return ask()
            except FileNotFoundError:
                raise
            except OSError as error:
                if time.monotonic() + pause > deadline or _FINAL.search(str(error)):
                    raise
                log.warning("%s does not answer, and is asked again: %s", self.uri, without_credentials(str(error)))
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def storage_full_error(number: int, error: object) -> StorageError:
    """The error of a study whose storage is full or read-only."""
    return StorageError(
        f"Free or mend the storage and run the same command again (what was recorded is whole): a study must be able to write, but "
        f"{UNWRITABLE[number]} ({error})"
    )


def without_credentials(text: str) -> str:
    """``text`` with the credentials of the URIs in it hidden: what may be shown and written down."""
    return _CREDENTIALS.sub("***@", text)
