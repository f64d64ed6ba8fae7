"""Where studies lie: a folder that all machines see, or an object store, of which a process has a working copy.

What a study writes, it writes to paths. In a folder these are the study's own files; beside an object store they lie in a
scratch folder, from which ``push`` takes what has changed, and to which ``pull`` brings what others have left.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from emoreg.storage.files import Files, expand, replacing, scratch_folder


def node_cache() -> Path:
    """This user's folder on this machine: for prepared image sets, which each machine fetches once, and for scratch."""
    return Path(tempfile.gettempdir()) / f"emoreg-{os.getuid()}"


def scratch() -> AbstractContextManager[Path]:
    """A folder of this machine for the time of a block."""
    return scratch_folder(node_cache() / "scratch")


def join(storage: str, name: str) -> str:
    """The URI, or the path, of what is called ``name`` in a storage: before the query that a URI may have."""
    place, question, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{place.rstrip('/')}/{name}{question}{query}"


def split(place: str) -> tuple[str, str]:
    """The storage and the name of what ``join`` has joined: "s3://bucket/studies?region=x" and "quickstart"."""
    path, question, query = place.partition("?") if "://" in place else (str(expand(place)), "", "")
    storage, _, name = path.rstrip("/").rpartition("/")
    return (storage or ("/" if path.startswith("/") else ".")) + question + query, name


class WorkingCopy:
    """A folder of the storage as paths of this process. A context manager.

    Attributes:
        files: the folder in the storage.
        folder: where its files are: the folder itself, or a scratch folder that is removed at the end.
    """

    def __init__(self, files: Files, *, check: Callable[[], None] = lambda: None) -> None:
        """Begin empty beside an object store: see ``pull``.

        Args:
            files: the folder in the storage.
            check: called by each ``push``, before it writes; raises where another driver has the study: see ``locks.Fence``.
        """
        self.files = files
        self._check = check
        self._end = ExitStack()
        self.folder = files.folder if files.folder is not None else self._end.enter_context(scratch())
        self._known: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()  # checkpoints are pushed from the thread that writes them

    @property
    def is_remote(self) -> bool:
        """Whether the files are copies."""
        return self.files.folder is None

    def pull(self, *names: str) -> None:
        """Bring files, and all that is in folders, as they are in the storage now.

        Raises:
            OSError: where the storage does not answer.
        """
        if not self.is_remote:
            return
        with self._lock:
            for name in names:
                found = [item.name for item in self.files.find(name)] or ([name] if self.files.exists(name) else [])
                for item in found:
                    try:
                        content = self.files.read(item)
                    except FileNotFoundError:  # gone since it was found: what runs now is written down only while it runs
                        continue
                    with replacing(self.folder / item) as stream:
                        stream.write(content)
                    self._known[item] = _version(self.folder / item)

    def push(self, *names: str) -> None:
        """Take to the storage what has changed of files and folders since they were pulled or pushed.

        What is gone from the copy stays in the storage: see ``remove``.

        Raises:
            OSError: where the storage does not answer.
            StorageError: where another driver has the study.
        """
        if not self.is_remote:
            self._check()
            return
        with self._lock:
            for name in names:
                for path in _files_below(self.folder / name):
                    item, version = path.relative_to(self.folder).as_posix(), _version(path)
                    if self._known.get(item) != version:
                        content = path.read_bytes()
                        self._check()
                        self.files.write(item, content)
                        self._known[item] = version

    def remove(self, *names: str) -> None:
        """Remove files, here and in the storage.

        Raises:
            OSError: where the storage does not answer.
            StorageError: where another driver has the study.
        """
        with self._lock:
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
                self._known.pop(name, None)
                if self.is_remote:
                    self._check()
                    self.files.remove(name)

    def __enter__(self) -> WorkingCopy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.close()


def _files_below(path: Path) -> Iterator[Path]:
    """The whole files at or below a path."""
    candidates = [path] if path.is_file() else path.rglob("*")
    return (candidate for candidate in candidates if candidate.is_file() and not candidate.name.endswith((".tmp", ".lock")))


def _version(path: Path) -> tuple[int, int, int]:
    """What differs after a file was written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
