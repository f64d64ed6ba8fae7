"""Small JSON files that carry a digest of themselves, so that a damaged one is never taken for a whole one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import xxhash

_DIGEST = "digest"


def seal(content: Mapping[str, Any]) -> bytes:
    """Write what JSON can hold, with its digest beside it."""
    return json.dumps({**content, _DIGEST: digest(content)}, indent=1).encode() + b"\n"


def unseal(stored: bytes | pa.Buffer) -> dict[str, Any]:
    """What ``seal`` has written.

    Raises:
        ValueError: where it is damaged, was changed by hand, or was not sealed.
    """
    content = json.loads(bytes(stored))
    if not isinstance(content, dict) or _DIGEST not in content:
        raise ValueError("it has no digest: an earlier emoreg wrote it, or another program")
    if content.pop(_DIGEST) != digest(content):
        raise ValueError("it does not match its digest: it is damaged, or was changed by hand")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """What tells apart what JSON holds, however it is laid out: 32 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
