"""Independent random streams from one seed, by name.

A stream's seed depends on the trial's seed and the stream's own name alone, so that a trial which skips one stream (the
plain control never builds an emotional encoder) draws the same numbers from every other: comparisons are paired by seed.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream ``names`` of ``seed``: the first 63 bits of a SHA-256."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` for the stream ``names`` of ``seed``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))
