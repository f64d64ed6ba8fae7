"""State on disk that is whole or not there: written atomically, versioned, checked when read, and never running code.

A file is what ``torch.save`` writes and, after it, a trailer: version, length and XXH3-128 checksum. The checksum finds torn
and damaged files; against code from strangers there is ``weights_only=True``. PyTorch's reader looks for the end of its archive
from behind and does not mind the trailer, so that a file is loaded by path, without a copy of it in memory.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, runtime_checkable

import torch
import xxhash
from torch import Tensor

from emoreg.storage.files import replacing

_MAGIC = b"emoreg checkpoint"
_VERSION = 2
_TRAILER = struct.Struct(f"<{len(_MAGIC)}sIQ16s")  # magic, version, bytes of the body, checksum of the body
_CHUNK = 1 << 20

State = dict[str, Any]

log = logging.getLogger(__name__)


@runtime_checkable  # tests check it in signatures
class Keeper(Protocol):
    """Decides when the state of a training loop is kept, and where."""

    def due(self) -> bool:
        """Whether the loop should hand over its state after this step: time has passed, or the trial is asked to stop."""

    def keep(self, state: State) -> None:
        """Take the state after an epoch, and after a step where ``due`` says so. The loop may change its tensors afterwards.

        ``state["epochs"]`` are the epochs completed, ``state["steps"]`` the steps done of the next one: 0 after an epoch.

        Raises:
            Interrupted: once the state is safe, where the trial is asked to stop.
        """


class Untrusted(Exception):
    """A file that is torn, foreign or of another version. The message says which; the file is not used."""


def save(path: Path, state: State) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts) so that ``path`` is the old file or the new one, whole.

    Raises:
        OSError: where it cannot be written; ``path`` is then as it was.
    """
    with replacing(path) as stream:
        _write(stream, state)


def encode(state: State) -> memoryview:
    """What ``save`` would write, in memory."""
    buffer = io.BytesIO()
    _write(buffer, state)
    return buffer.getbuffer()


def load(path: Path) -> State | None:
    """The state in ``path``, on the CPU, or None where there is none.

    A file that is torn, foreign, or of another version is set aside as ``NAME.bad`` with a warning, and counts as absent: the
    work that it held is done again rather than trusted.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Untrusted as fault:
        aside = path.with_name(f"{path.name}.bad")
        os.replace(path, aside)
        log.warning("%s cannot be trusted: %s; it was set aside as %s and its work is done again", path, fault, aside.name)
        return None


def read(path: Path, *, in_place: bool = False) -> State:
    """The state in ``path``, on the CPU.

    Args:
        path: of a file that ``save`` wrote.
        in_place: leave the tensors in the file, mapped into memory, for a reader that copies a few of them and drops the rest:
            what is not looked at is not loaded. The file may be removed or replaced meanwhile, but not changed.

    Raises:
        FileNotFoundError: where there is none.
        Untrusted: for a file that cannot be relied on.
    """
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - _TRAILER.size))
        checksum = _checksum(stream.read(), size, _head(stream))
        stream.seek(0)
        digest, left, chunk = xxhash.xxh3_128(), size - _TRAILER.size, memoryview(bytearray(_CHUNK))
        while left and (count := stream.readinto(chunk[:left])):
            digest.update(chunk[:count])
            left -= count
    if digest.digest() != checksum:
        raise Untrusted("its checksum does not match")
    return _load(path, mmap=in_place)


def decode(content: bytes | memoryview) -> State:
    """The state that ``encode`` made ``content`` of.

    Raises:
        Untrusted: for a content that cannot be relied on.
    """
    view = memoryview(content)
    body = view[: -_TRAILER.size]
    checksum = _checksum(bytes(view[-_TRAILER.size :]), len(view), bytes(view[:_HEAD]))
    if xxhash.xxh3_128_digest(body) != checksum:
        raise Untrusted("its checksum does not match")
    return _load(io.BytesIO(body))


class Writer:
    """Writes states in the background, one at a time, so that a training loop stands still for a copy in memory only.

    An error of a write is raised by the next ``save`` or ``flush``. As a context it waits for the last write when it ends.
    The copy's memory is kept and used again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[tuple[Any, ...], Tensor] = {}

    def save(self, path: Path, state: State) -> None:
        """Like ``checkpoint.save``, but returns before the file is there. The tensors may be changed then."""
        self.submit(partial(save, path), state)

    def submit(self, write: Callable[[State], None], state: State) -> None:
        """Have a copy of ``state`` written by ``write``, once what was submitted before it is."""
        self.flush()
        copied = self._copy(state, ())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies from the device run beside the program
        self._writing = self._thread.submit(write, copied)

    def flush(self) -> None:
        """Wait until what was submitted is written.

        Raises:
            OSError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        """``value`` with its tensors copied to memory of ours, which belongs to their place in the state."""
        if isinstance(value, Tensor):
            mine = self._copies.get(place)
            if mine is None or mine.shape != value.shape or mine.dtype != value.dtype:
                mine = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._copies[place] = mine
            return mine.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            copied = copy.copy(value)  # a state_dict is a dict with an attribute
            copied.update({key: self._copy(item, (*place, key)) for key, item in value.items()})
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*place, index)) for index, item in enumerate(value))
        return value


_HEAD = 32
_ZIP = b"PK\x03\x04"
_FIRST_VERSION = b'{"format": "emoreg checkpoint"'  # which had its header in front


def _head(stream: BinaryIO | io.FileIO) -> bytes:
    stream.seek(0)
    return stream.read(_HEAD)


class _Checked:
    """A stream that knows the checksum of what went through it, and the error that stopped it, which PyTorch swallows."""

    def __init__(self, stream: BinaryIO | io.BytesIO) -> None:
        self._stream = stream
        self.digest = xxhash.xxh3_128()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            count = self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += count
        return count

    def flush(self) -> None:
        self._stream.flush()


def _write(stream: BinaryIO | io.BytesIO, state: State) -> None:
    checked = _Checked(stream)
    try:
        torch.save(state, checked)  # type: ignore[arg-type]  # it writes and flushes, nothing else
    except RuntimeError:
        if checked.error is not None:
            raise checked.error from None
        raise
    stream.write(_TRAILER.pack(_MAGIC, _VERSION, checked.size, checked.digest.digest()))


def _checksum(trailer: bytes, size: int, head: bytes) -> bytes:
    """The checksum that the body should have, of a file whose trailer fits its size.

    Raises:
        Untrusted: for another file.
    """
    if head.startswith(_FIRST_VERSION):
        raise Untrusted(f"it has version 1, this is version {_VERSION}")
    if not head.startswith(_ZIP):
        raise Untrusted("it is another program's file, or its beginning is lost")
    magic, version, length, checksum = _TRAILER.unpack(trailer) if size >= _TRAILER.size else (b"", 0, 0, b"")
    if magic != _MAGIC:
        raise Untrusted("it is torn, or another program's file: its end is not ours")
    if version != _VERSION:
        raise Untrusted(f"it has version {version}, this is version {_VERSION}")
    if length != size - _TRAILER.size:
        raise Untrusted(f"it is torn: {size - _TRAILER.size} bytes of {length}")
    assert isinstance(checksum, bytes)
    return checksum


def _load(source: Path | io.BytesIO, *, mmap: bool = False) -> State:
    try:
        state: State = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Untrusted(f"its body does not load ({error})") from error
    return state
