"""What names mean where an image set lies: splits by the Hugging Face hub's synonyms, shards of one whole, and rubbish."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from emoreg.errors import ImageSetError

SplitName = Literal["train", "validation", "test"]

_SYNONYMS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS: dict[str, SplitName] = {word: split for split, words in _SYNONYMS.items() for word in words}
_RUBBISH = frozenset(
    ("@eadir", "@recycle", "#recycle", ".@__thumb", "__macosx", "$recycle.bin", "system volume information", "lost+found")
)
"""Folders that network drives, systems and archives leave among people's files, in lower case."""
_SHARD = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<count>\d+)(?P<rest>.*)", re.DOTALL)
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 3


def split_of(name: str) -> SplitName | None:
    """The split that a word of a file's or a folder's name says: of "FER2013Train", "my_dev-00000-of-00001.parquet", "TESTING".

    None where no word says one, or where words say several.
    """
    splits = {_SPLITS[word] for word in map(str.lower, _words(name)) if word in _SPLITS}
    return splits.pop() if len(splits) == 1 else None


def set_of(name: str) -> str:
    """The words of a file's name beside its split and its number, in which the files of one set agree."""
    shard = _SHARD.fullmatch(name)
    stem = name.rpartition(".")[0] if shard is None else shard["stem"]
    return " ".join(word for word in map(str.lower, _words(stem)) if word not in _SPLITS)


def is_split_word(name: str) -> bool:
    """Whether a name is one of a split's, and nothing else."""
    return name.lower() in _SPLITS


def begins_with_split(name: str) -> bool:
    """Whether the first word of a name says its split."""
    return next(map(str.lower, _words(name)), "") in _SPLITS


def _words(name: str) -> Iterator[str]:
    for letters in re.findall(r"[^\W\d_]+", name):  # of any script: "détesté" is no test
        yield from re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", letters) if letters.isascii() else [letters]


def rubbish(name: str) -> str | None:
    """Why a folder of this name is passed over; None for one that is not."""
    if name.lower() in _RUBBISH:
        return "passed over: folder of a system"
    return "passed over: hidden folder" if name.startswith(".") else None


def check_shards(names: Iterable[str]) -> None:
    """Refuse files of which some are missing, or there twice, by "-00000-of-00002" in their names or by "0000.parquet".

    Raises:
        ImageSetError: naming what is missing, or what contradicts what.
    """
    families: dict[str, dict[str, list[re.Match[str]]]] = {}
    numbered: dict[str, list[str]] = {}
    for name in names:
        shard = _SHARD.fullmatch(name)
        if shard is not None:
            families.setdefault(shard["stem"], {}).setdefault(shard["count"], []).append(shard)
            continue
        folder, _, base = name.rpartition("/")
        if re.fullmatch(r"\d+\.\w+", base):
            numbered.setdefault(folder, []).append(base)
    for stem, by_count in families.items():
        if len(by_count) > 1:
            found = " and ".join(f"{stem}*-of-{count}" for count in sorted(by_count))
            raise ImageSetError(f"Keep one version of the files: shards must agree on their number, but there are {found}")
        for count, shards in by_count.items():
            _check_numbers([shard["number"] for shard in shards], int(count), f"{stem}{{}}-of-{count}{shards[0]['rest']}")
    for folder, bases in numbered.items():
        stems = [base.partition(".")[0] for base in bases]
        first = min(map(int, stems))
        if first in (0, 1):  # else they are years, say
            name = f"{folder}/{{}}.{bases[0].rpartition('.')[2]}".removeprefix("/")
            _check_numbers(stems, max(map(int, stems)) + 1 - first, name)


def _check_numbers(numbers: list[str], count: int, name: str) -> None:
    found = list(map(int, numbers))
    first = 1 if count in found and 0 not in found else 0
    missing = [name.format(f"{number:0{len(numbers[0])}}") for number in range(first, first + count) if number not in found]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise ImageSetError(f"Fetch {shown}: the set must have {count} such shards, but it has {count - len(missing)}")
    doubles = [name.format(number) for number in sorted(set(numbers)) if numbers.count(number) > 1]
    if doubles:
        raise ImageSetError(f"Keep one version of the files: each shard must be there once, but {doubles[0]} is there twice")


def find_below(root: Path, *names: str, depth: int = 2) -> Path | None:
    """The first file or folder of one of these names (in any case) at ``root`` or below, the nearest first; rubbish aside."""
    wanted = {name.lower() for name in names}
    if root.name.lower() in wanted:
        return root
    level = [str(root)] if root.is_dir() else []
    for _ in range(depth + 1):
        inside = sorted((entry for folder in level for entry in os.scandir(folder)), key=lambda entry: entry.path)
        found = next((entry.path for entry in inside if entry.name.lower() in wanted), None)
        if found is not None:
            return Path(found)
        level = [entry.path for entry in inside if entry.is_dir() and rubbish(entry.name) is None]
    return None


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name; nothing for what is no folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def fail(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed, which ``os.walk`` would pass over without a word."""
    raise error


def stamp_of(files: Iterable[Path], root: Path) -> list[str]:
    """Name, size and time of change of each file; of a link that leads nowhere, its own."""
    lines = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            status = file.lstat()
        lines.append(f"{str(file).removeprefix(str(root))} {status.st_size} {status.st_mtime_ns}")
    return lines


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins so is a pointer of git-lfs, in place of the file itself."""
    return head.startswith(_POINTER)


POINTER_CURE = "run `git lfs pull` where it was cloned"
