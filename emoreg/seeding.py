"""Independent random streams from one seed, by name.

A stream's seed depends on the trial's seed and the stream's own name alone, so that a trial which skips one stream (the
plain control never builds an emotional encoder) draws the same numbers from every other: comparisons are paired by seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream ``names`` of ``seed``: the first 63 bits of a SHA-256."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` for the stream ``names`` of ``seed``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


@contextmanager
def global_stream(seed: int) -> Iterator[None]:
    """Within, torch's global CPU stream begins at ``seed``, for code that draws from nothing else; then it is as it was.

    The streams of GPUs, which ``torch.manual_seed`` would set too, are left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
