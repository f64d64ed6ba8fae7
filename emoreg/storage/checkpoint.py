"""State on disk that is whole or not there: written atomically, versioned, checked when it is read, and never running code.

A file is what ``torch.save`` writes, followed by a trailer: version, length and XXH3-128 checksum. The checksum finds torn and
damaged files; ``weights_only=True`` guards against code from strangers. PyTorch searches its archive's end from behind, so the
trailer does not disturb it, and a file is loaded by its path, without a copy of it in memory.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from emoreg.storage.files import Files, replacing

_ZIP = b"PK\x03\x04"
_MAGIC = b"emoreg checkpoint"
_VERSION = 1
_TRAILER = struct.Struct(f"<{len(_MAGIC)}sIQ16s")  # magic, version, bytes of the body, checksum of the body
_CHUNK = 1 << 20

CHECKPOINT = "trial.ckpt"
"""Name of a trial's checkpoint in its folder: at its end, of its network."""

State = dict[str, Any]
"""What a file holds: tensors, numbers, strings, and lists and dicts of them."""

log = logging.getLogger(__name__)


class _Untrusted(Exception):
    """A file that is torn, foreign or of another version. The message says which."""


def save(files: Files, name: str, state: State) -> None:
    """Write ``state`` so that the file is the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; the file is then as it was.
    """
    if files.folder is not None:
        with replacing(files.folder / name) as stream:
            _write(stream, state)
    else:
        buffer = io.BytesIO()
        _write(buffer, state)
        files.write(name, buffer.getbuffer())


def load(files: Files, name: str, *, expected: Mapping[str, Any] | None = None, in_place: bool = False) -> State | None:
    """Read a state, on the CPU; None if there is none.

    A file that is torn, foreign, of another version or without the ``expected`` values is set aside as ``NAME.bad`` with a
    warning and counts as absent: the work that it held is done again rather than trusted.

    ``in_place`` leaves the tensors in a local file, mapped into memory, for a reader that copies a few of them and drops the
    rest. The file may be removed or replaced meanwhile, but not changed; what a reader changes of them stays in its memory.
    """
    path = None if files.folder is None else files.folder / name
    try:
        with open(path, "rb", buffering=0) if path is not None else io.BytesIO(files.read(name).to_pybytes()) as stream:
            _verify(stream)
            stream.seek(0)
            state = _load(path or stream, mmap=in_place and path is not None)
        if any(state.get(key) != value for key, value in (expected or {}).items()):
            raise _Untrusted("it is the state of something else")
    except FileNotFoundError:
        return None
    except _Untrusted as fault:
        files.move(name, f"{name}.bad")
        log.warning(
            "%s/%s cannot be trusted: %s; it was set aside as %s.bad and its work is done again", files.uri, name, fault, name
        )
        return None
    return state


def problem(files: Files, name: str) -> str | None:
    """Why a state cannot be trusted; None where it can. The file is left as it is.

    Raises:
        FileNotFoundError: where there is none.
    """
    path = None if files.folder is None else files.folder / name
    try:
        with open(path, "rb", buffering=0) if path is not None else io.BytesIO(files.read(name).to_pybytes()) as stream:
            _verify(stream)
    except _Untrusted as fault:
        return str(fault)
    return None


class Writer:
    """Writes states in the background, one at a time, so that a training loop stands still for a copy in memory only.

    An error of a write is raised by the next ``submit`` or ``flush``. As a context it waits for the last write when it ends.
    The copy's memory is kept and used again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[tuple[Any, ...], Tensor] = {}

    def submit(self, write: Callable[[State], None], state: State) -> None:
        """Have ``write`` write a copy of ``state``, after what was submitted before. The tensors may be changed afterwards."""
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
        """Copy ``value``, its tensors to memory of the writer's own, which belongs to their place in the state."""
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


class _Checked:
    """A stream that knows the checksum of what went through it, and the error that stopped it, which PyTorch swallows."""

    def __init__(self, stream: BinaryIO) -> None:
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


def _write(stream: BinaryIO, state: State) -> None:
    checked = _Checked(stream)
    try:
        torch.save(state, checked)  # type: ignore[arg-type]  # it writes and flushes, nothing else
    except RuntimeError:
        if checked.error is not None:
            raise checked.error from None
        raise
    stream.write(_TRAILER.pack(_MAGIC, _VERSION, checked.size, checked.digest.digest()))


def _verify(stream: io.FileIO | io.BytesIO) -> None:
    """Raise _Untrusted unless the stream holds a whole and undamaged file of this version."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if stream.read(len(_ZIP)) != _ZIP:
        raise _Untrusted("it is another program's file, or its beginning is lost")
    stream.seek(max(0, size - _TRAILER.size))
    trailer = stream.read(_TRAILER.size)
    magic, version, length, checksum = _TRAILER.unpack(trailer) if len(trailer) == _TRAILER.size else (b"", 0, 0, b"")
    if magic != _MAGIC:
        raise _Untrusted("it is torn, or another program's file: its end is not ours")
    if version != _VERSION:
        raise _Untrusted(f"it has version {version}, this is version {_VERSION}")
    if length != size - _TRAILER.size:
        raise _Untrusted(f"it is torn: {size - _TRAILER.size} bytes of {length}")
    stream.seek(0)
    digest, left, chunk = xxhash.xxh3_128(), length, memoryview(bytearray(_CHUNK))
    while left and (count := stream.readinto(chunk[:left])):
        digest.update(chunk[:count])
        left -= count
    if digest.digest() != checksum:
        raise _Untrusted("its checksum does not match")


def _load(source: Path | BinaryIO, *, mmap: bool) -> State:
    try:
        state: State = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _Untrusted(f"its body does not load ({error})") from error
    return state
