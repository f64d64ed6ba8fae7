"""What a reader is, and what it hands to the preparation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from emoreg.data.decode import Picture

HELD_OUT = 0.2
"""Share of a set without a test split of its own that becomes one."""


class Item(NamedTuple):
    """One image as its source has it.

    ``name`` says where it comes from, for messages. ``picture`` is None where the source has no image, ``target`` is None
    where it has no label: both are refused by the preparation, and counted.
    """

    name: str
    picture: Picture | None
    target: int | tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Both splits of a source, listed but not yet decoded. The two iterables are gone through once.

    ``class_names`` names the real-valued targets where ``regression``. ``notes`` counts what the reader left out or changed.
    """

    class_names: tuple[str, ...]
    train: Iterable[Item]
    num_train: int
    test: Iterable[Item]
    num_test: int
    regression: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked of a reader: ``target`` is resolved, ``downloads`` is where a reader may keep what it fetches."""

    path: str | None
    target: str
    image_size: int
    downloads: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A source of images, and how to read it.

    Attributes:
        kind: what it is made for: pre-training, the task, or either.
        description: one line for a list.
        source: where the images come from.
        layout: what `path` must hold.
        licence: the terms of the images, as their makers state them.
        path: whether the configuration must, may or must not give a path.
        targets: what can be learned, the default first. Where `any_target`, other label columns too.
        package: the optional package that it needs, as (import name, distribution).
        stamp: lines that change when the source does; cheap, reads no pixel.
        read: lists the source.
    """

    kind: Literal["stimuli", "task", "either"]
    description: str
    source: str
    layout: str
    licence: str
    path: Literal["required", "optional", "none"]
    targets: tuple[str, ...]
    any_target: bool = False
    package: tuple[str, str] | None = None
    stamp: Callable[[Request], list[str]]
    read: Callable[[Request], Contents]


def held_out(names: Sequence[str], classes: Sequence[Hashable]) -> Bool[np.ndarray, " N"]:
    """Which of the named things make up the test split of a source that has none.

    In each class the fifth (``HELD_OUT``, at least one, never all) whose names' SHA-256 come first: the same on every
    machine, and for each name nearly independent of what else is there.
    """
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(classes):
        members.setdefault(label, []).append(index)
    chosen = np.zeros(len(names), dtype=bool)
    for indices in members.values():
        indices.sort(key=lambda index: (sha256(names[index]), names[index]))
        count = min(max(1, round(HELD_OUT * len(indices))), len(indices) - 1)
        chosen[indices[:count]] = True
    return chosen


def sha256(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal. Names of undecodable bytes are hashed as the bytes that they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
