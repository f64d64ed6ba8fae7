"""State on disk that is whole or not there: written atomically, versioned, checked when read, and never running code.

A file is a header line (JSON: format, version, SHA-256 and length of the body) and a body written by ``torch.save``, loaded
with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

_FORMAT = "emoreg checkpoint"
_VERSION = 1

State = dict[str, Any]

log = logging.getLogger(__name__)


def save(path: Path, state: State) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts) so that ``path`` is the old file or the new one, whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    header = {"format": _FORMAT, "version": _VERSION, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(json.dumps(header).encode() + b"\n")
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> State | None:
    """The state in ``path``, on the CPU, or None where there is none.

    A file that is torn, foreign, or of another version is set aside as ``NAME.bad`` with a warning, and counts as absent: the
    work that it held is done again rather than trusted.
    """
    try:
        with open(path, "rb") as stream:
            header, body = stream.readline(), stream.read()
    except FileNotFoundError:
        return None
    fault = _fault(header, body)
    if fault is None:
        try:
            state: State = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            fault = f"its body does not load ({error})"
        else:
            return state
    aside = path.with_name(f"{path.name}.bad")
    os.replace(path, aside)
    log.warning("%s cannot be trusted: %s; it was set aside as %s and its work is done again", path, fault, aside.name)
    return None


def _fault(header: bytes, body: bytes) -> str | None:
    try:
        fields = json.loads(header)
    except ValueError:
        return "it has no header of ours"
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        return "it is another program's file"
    if fields.get("version") != _VERSION:
        return f"it has version {fields.get('version')}, this is version {_VERSION}"
    if fields.get("bytes") != len(body):
        return f"it is torn: {len(body)} bytes of {fields.get('bytes')}"
    if fields.get("sha256") != hashlib.sha256(body).hexdigest():
        return "its checksum does not match"
    return None
