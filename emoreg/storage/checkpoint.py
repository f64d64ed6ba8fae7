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
from types import MappingProxyType, TracebackType
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
_ANYTHING: Mapping[str, Any] = MappingProxyType({})

State = dict[str, Any]
"""What a file holds: tensors, numbers, strings, and lists and dicts of them."""

log = logging.getLogger(__name__)


class Untrusted(Exception):
    """A file that is torn, foreign or of another version. The message says which; the file is not used."""


def save(files: Files, name: str, state: State) -> None:
    """Write ``state`` so that the file is the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; the file is then as it was.
    """
    if files.folder is None:
        files.write(name, encode(state))
        return
    with replacing(files.folder / name) as stream:
        _write(stream, state)


def load(files: Files, name: str, *, expected: Mapping[str, Any] = _ANYTHING, in_place: bool = False) -> State | None:
    """Read a state, on the CPU; None if there is none.

    A file that is torn, foreign, of another version or of another place is set aside as ``NAME.bad`` with a warning and counts
    as absent: the work that it held is done again rather than trusted.

    Args:
        files: where it lies.
        name: of the file.
        expected: values that the state must have.
        in_place: leave the tensors in a local file, mapped into memory, for a reader that copies a few of them and drops the
            rest. The file may be removed or replaced meanwhile, but not changed.
    """
    try:
        folder = files.folder
        state = decode(files.read(name).to_pybytes()) if folder is None else _read(folder / name, in_place=in_place)
        if any(state.get(key) != value for key, value in expected.items()):
            raise Untrusted("it is the state of something else")
    except FileNotFoundError:
        return None
    except Untrusted as fault:
        aside = f"{name}.bad"
        files.move(name, aside)
        log.warning(
            "%s/%s cannot be trusted: %s; it was set aside as %s and its work is done again", files.uri, name, fault, aside
        )
        return None
    return state


def encode(state: State) -> bytes:
    """Make the bytes that ``save`` writes."""
    buffer = io.BytesIO()
    _write(buffer, state)
    return buffer.getvalue()


def decode(content: bytes) -> State:
    """Make the state of the bytes of a file.

    Raises:
        Untrusted: they cannot be relied on.
    """
    stream = io.BytesIO(content)
    _verify(stream)
    stream.seek(0)
    return _load(stream)


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


def _read(path: Path, *, in_place: bool) -> State:
    with open(path, "rb", buffering=0) as stream:
        _verify(stream)
    return _load(path, mmap=in_place)


def _verify(stream: io.FileIO | io.BytesIO) -> None:
    """Raise Untrusted unless the stream holds a whole and undamaged file of this version."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if stream.read(len(_ZIP)) != _ZIP:
        raise Untrusted("it is another program's file, or its beginning is lost")
    stream.seek(max(0, size - _TRAILER.size))
    trailer = stream.read(_TRAILER.size)
    magic, version, length, checksum = _TRAILER.unpack(trailer) if len(trailer) == _TRAILER.size else (b"", 0, 0, b"")
    if magic != _MAGIC:
        raise Untrusted("it is torn, or another program's file: its end is not ours")
    if version != _VERSION:
        raise Untrusted(f"it has version {version}, this is version {_VERSION}")
    if length != size - _TRAILER.size:
        raise Untrusted(f"it is torn: {size - _TRAILER.size} bytes of {length}")
    stream.seek(0)
    digest, left, chunk = xxhash.xxh3_128(), length, memoryview(bytearray(_CHUNK))
    while left and (count := stream.readinto(chunk[:left])):
        digest.update(chunk[:count])
        left -= count
    if digest.digest() != checksum:
        raise Untrusted("its checksum does not match")


def _load(source: Path | io.BytesIO, *, mmap: bool = False) -> State:
    try:
        state: State = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Untrusted(f"its body does not load ({error})") from error
    return state
