"""Files that are whole or absent: in a folder of this machine or of NFS, or in an object store (S3, GCS), by pyarrow."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from emoreg.errors import StorageError

_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


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
    """

    def __init__(self, uri: str) -> None:
        """Open a folder, which need not be there yet.

        Args:
            uri: a path, or file://, s3://, gs:// and whatever else pyarrow knows, with its options in the query:
                s3://bucket/path?endpoint_override=host:9000&scheme=http&region=us-east-1.

        Raises:
            StorageError: for a URI that pyarrow cannot use.
        """
        self.uri = _CREDENTIALS.sub("***@", uri)
        try:
            if "://" in uri:
                self._filesystem, self._root = pafs.FileSystem.from_uri(uri)
            else:
                self._filesystem, self._root = pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                f"a store must be a folder, or a URI that pyarrow can open (file:///path, s3://bucket/path, gs://bucket/path), "
                f"but {self.uri!r} cannot be used ({_CREDENTIALS.sub('***@', str(error)).partition(chr(10))[0]}): correct it, "
                "or name a folder"
            ) from error
        self._root = self._root.rstrip("/")
        if not self._root:
            raise StorageError(f"a store's URI must name a bucket or a folder, but {self.uri!r} names none: add it")
        self.folder = Path(self._root) if isinstance(self._filesystem, pafs.LocalFileSystem) else None
        self.place = f"{self._filesystem.type_name}:{self._root}"

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
                f"a store must be writable, but {self.uri!r} is not ({error}): mend its permissions, or name another"
            ) from error
        if not whole:
            raise StorageError(f"a store must give back what was written, but {self.uri!r} does not: name another")

    def read(self, name: str) -> pa.Buffer:
        """The content of a file.

        Raises:
            FileNotFoundError: where there is none.
        """
        with self._filesystem.open_input_file(self._path(name)) as stream:
            return stream.read_buffer()

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Make ``content`` the file's, whole and durably."""
        if self.folder is not None:
            with replacing(self.folder / name) as stream:
                stream.write(content)
        else:
            with self._filesystem.open_output_stream(self._path(name)) as stream:  # there once it is closed, not before
                stream.write(content)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._filesystem.get_file_info(self._path(name)).type == pafs.FileType.File)

    def find(self, folder: str = "", *, deep: bool = True) -> list[Found]:
        """Every file in ``folder``, and where ``deep`` below it, by name; none where there is no such folder."""
        selector = pafs.FileSelector(self._path(folder), recursive=deep, allow_not_found=True)
        infos = self._filesystem.get_file_info(selector)
        start = len(self._root) + 1
        files = [Found(info.path[start:], info.size or 0) for info in infos if info.type == pafs.FileType.File]
        return sorted(files, key=lambda found: found.name)

    def move(self, name: str, new_name: str) -> None:
        """Give a file another name, in place of what has it; nothing happens where the file is gone."""
        if self.exists(name):  # S3 has no error of its own for a file that is gone
            with suppress(FileNotFoundError):
                self._filesystem.move(self._path(name), self._path(new_name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
