from __future__ import annotations

import json

import numpy as np
import pytest

from emoreg.storage.sealed import seal, unseal

CONTENT = {"name": "quickstart", "openings": [{"seeds": [1, 2], "accuracy": 0.25, "params": None}], "digits": True}


def test_what_was_sealed_is_read_and_can_be_read_by_anybody() -> None:
    assert unseal(seal(CONTENT)) == CONTENT
    assert json.loads(seal(CONTENT)).items() >= CONTENT.items()


def test_no_flipped_bit_is_believed() -> None:
    """White space is no part of what JSON holds: a flip there may leave it whole."""
    whole = seal(CONTENT)
    random = np.random.default_rng(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        try:
            assert unseal(bytes(damaged)) == CONTENT
        except ValueError:
            continue
    with pytest.raises(ValueError, match="does not match its digest"):
        unseal(whole.replace(b"0.25", b"0.75"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"3", b'{"name": "not sealed"}', b"\xff\xfe"])
def test_what_was_not_sealed_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unseal(content)
