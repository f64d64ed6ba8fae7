"""Where studies lie: a folder that all machines see, or an object store, of which a process has a working copy.

What a study writes, it writes to paths. In a folder these are the study's own files; beside an object store they lie in a
scratch folder, from which ``push`` takes what has changed, and to which ``pull`` brings what others have left.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from emoreg.errors import StorageError
from emoreg.storage.files import Files, replacing, scratch_folder

PATIENCE_SECONDS = 120.0
"""How long a running study waits for a storage that does not answer."""
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 20.0

log = logging.getLogger(__name__)


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


class WorkingCopy:
    """A folder of the storage as paths of this process. A context manager.

    Attributes:
        files: the folder in the storage.
        folder: where its files are: the folder itself, or a scratch folder that is removed at the end.
    """

    def __init__(self, files: Files) -> None:
        """Begin empty beside an object store: see ``pull``."""
        self.files = files
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
                    self._known[item] = _stamp(self.folder / item)

    def push(self, *names: str) -> None:
        """Take to the storage what has changed of files and folders since they were pulled or pushed, also what is gone.

        Raises:
            OSError: where the storage does not answer.
        """
        if not self.is_remote:
            return
        with self._lock:
            for name in names:
                there = {path.relative_to(self.folder).as_posix(): path for path in _below(self.folder / name)}
                for item, path in there.items():
                    stamp = _stamp(path)
                    if self._known.get(item) != stamp:
                        self.files.write(item, path.read_bytes())
                        self._known[item] = stamp
                for item in [item for item in self._known if item == name or item.startswith(f"{name}/")]:
                    if item not in there:
                        self.files.remove(item)
                        del self._known[item]

    def __enter__(self) -> WorkingCopy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.close()


def _below(path: Path) -> Iterator[Path]:
    """The whole files at or below a path."""
    candidates = [path] if path.is_file() else path.rglob("*")
    return (candidate for candidate in candidates if candidate.is_file() and not candidate.name.endswith((".tmp", ".lock")))


def _stamp(path: Path) -> tuple[int, int, int]:
    """What differs after a file was written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def only_driver(files: Files) -> Iterator[WorkingCopy]:
    """Hold a study's folder for one driver at a time: by a file lock or, in an object store, by a file that says who it is.

    A driver that died in mid-run keeps an object store for 20 seconds; on its own machine, no time. Gives the folder, with what
    a driver goes on from.

    Raises:
        StorageError: where another process holds it.
    """
    holding = _hold_by_heart(files) if files.folder is None else _hold_by_lock(files.folder)
    with holding, WorkingCopy(files) as copy:
        copy.pull("study.json", "records", "optuna.journal")
        yield copy


@contextmanager
def _hold_by_lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0.5, poll_interval=0.05)  # `emoreg status` may hold it for a moment
    except Timeout as error:
        raise _held(str(folder)) from error
    try:
        yield
    finally:
        lock.release()


def _held(where: str) -> StorageError:
    return StorageError(
        f"a study has one driver at a time, but another process is running {where!r}: wait for it, or give this one another "
        "--name"
    )


@contextmanager
def _hold_by_heart(files: Files) -> Iterator[None]:
    """No object store that pyarrow knows has locks: its holder says every few seconds that it lives."""
    me = {"host": platform.node(), "process": os.getpid(), "token": secrets.token_hex(8)}

    def beat() -> None:
        files.write(".driver.json", json.dumps({**me, "time": time.time()}).encode())

    holder = _holder(files)
    if holder is not None:
        raise _held(f"{files.uri} on {holder}")
    beat()
    if json.loads(files.read(".driver.json").to_pybytes())["token"] != me["token"]:  # two began at the same moment
        raise _held(files.uri)
    has_ended = threading.Event()

    def keep_beating() -> None:
        while not has_ended.wait(_BEAT_SECONDS):
            try:
                beat()
            except OSError as error:
                log.warning("%s could not be told that the study runs: %s", files.uri, error)

    heart = threading.Thread(target=keep_beating, name="driver's heart", daemon=True)
    heart.start()
    try:
        yield
    finally:
        has_ended.set()
        heart.join()
        try:
            files.remove(".driver.json")
        except OSError as error:  # nobody trusts it once it has stood still for a while
            log.warning("%s could not be told that the study has ended: %s", files.uri, error)


def _holder(files: Files) -> str | None:
    """Who runs the study in an object store now, or None: one on another machine lives if it says so while we look."""
    first = _driver(files)
    if first is None:
        return None
    who = f"{first['host']}, process {first['process']}"
    if first["host"] == platform.node():
        return who if _is_alive(first["process"]) else None
    deadline = time.monotonic() + _STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        now = _driver(files)
        if now != first:
            return None if now is None else who
    return None


def _driver(files: Files) -> dict[str, Any] | None:
    try:
        driver: dict[str, Any] = json.loads(files.read(".driver.json").to_pybytes())
    except (FileNotFoundError, ValueError):
        return None
    return driver


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
