"""What an experience store holds, who used it, what it saved, and what may go. Reads small files only, and needs no torch.

Layout, below the store's folder: ``<key>/<epochs>.ckpt`` snapshots, ``<key>/<epochs>+<steps>.partial`` the newest state of a
trunk in between, ``<key>/made.json`` what made it, ``<key>/uses/<study>.<identity>.json`` what a trial had of it, and
``running/*.json`` the studies that run now.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from emoreg.storage.files import Files, Found
from emoreg.storage.locks import Locks

STALE_SECONDS = 600.0
"""A study whose heart has not beaten for so long runs no more."""
_BEAT_SECONDS = 60.0
_READERS = 16
_KEY = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What made an experience."""

    backbone: str
    stimuli: str
    seed: int
    shuffled: bool
    settings: dict[str, Any]
    """All that decides the weights."""
    versions: dict[str, str]
    device: str
    time: float
    """Of its beginning, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What one trial of one study had of an experience."""

    study: str
    identity: str
    epochs: int
    paid_seconds: float
    """Of pre-training by this trial, over all its attempts."""
    experience_seconds: float
    """Of pre-training that it would have taken alone; 0 until it has its experience."""
    waiting_seconds: float
    """That it waited for another trial to train it."""
    time: float
    """Of the use, in seconds since 1970."""

    @property
    def reused_seconds(self) -> float:
        """Of pre-training that others had paid."""
        return max(0.0, self.experience_seconds - self.paid_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pulse:
    """That a study runs: since when, and when it last said so, in seconds since 1970."""

    study: str
    since: float
    beat: float


Note = TypeVar("Note", Made, Use, _Pulse)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One trunk: everything under one key."""

    key: str
    made: Made | None
    """None where it was not written down."""
    lengths: tuple[int, ...]
    """Epochs of its snapshots."""
    size: int
    """In bytes, with partial results and files that were set aside."""
    uses: tuple[Use, ...]

    @property
    def used(self) -> float:
        """When it was last used (or begun), in seconds since 1970; 0 where nobody knows."""
        return max([use.time for use in self.uses] + [self.made.time if self.made else 0.0])

    @property
    def paid_seconds(self) -> float:
        """Seconds of pre-training that trials paid."""
        return math.fsum(use.paid_seconds for use in self.uses)

    @property
    def saved_seconds(self) -> float:
        """Seconds of pre-training that trials took from it instead of training."""
        return math.fsum(use.reused_seconds for use in self.uses)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A study's line in the ledger, in seconds of pre-training."""

    study: str
    num_trials: int
    paid_seconds: float
    """Trained by its trials."""
    reused_seconds: float
    """Of the experience that they took from the store instead, trained by other trials, of any study."""

    @property
    def saved(self) -> float:
        """Share of all its trials' pre-training that was not paid for again, in [0, 1]."""
        return self.reused_seconds / (self.paid_seconds + self.reused_seconds) if self.reused_seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What a pruning did."""

    removed: tuple[Entry, ...]
    kept: tuple[tuple[Entry, str], ...]
    """What would have gone next but must stay, with the reason."""
    size_before: int
    size_after: int

    @property
    def said(self) -> list[str]:
        """What was done, a sentence each; nothing where nothing had to go."""
        sentences = [
            f"experience {entry.key} removed: {size_text(entry.size)}, last used {day_text(entry.used)}"
            for entry in self.removed
        ]
        sentences += [f"experience {entry.key} kept: {size_text(entry.size)}, {reason}" for entry, reason in self.kept]
        return sentences


def entries(files: Files, key: str = "") -> list[Entry]:
    """Everything that the store holds, by key; or only what is under ``key``, if anything."""
    found: dict[str, list[Found]] = {}
    for item in files.find(key):
        key = item.name.partition("/")[0]
        if _KEY.fullmatch(key):
            found.setdefault(key, []).append(item)
    notes = [item.name for items in found.values() for item in items if item.name.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as readers:  # each is a round trip in an object store
        contents = dict(zip(notes, readers.map(lambda name: read_json(files, name), notes), strict=True))
    return [_entry(key, items, contents) for key, items in sorted(found.items())]


def _entry(key: str, items: list[Found], contents: dict[str, dict[str, Any] | None]) -> Entry:
    uses = [
        _note(Use, contents[item.name])
        for item in items
        if item.name.startswith(f"{key}/uses/") and item.name.endswith(".json")
    ]
    lengths = (re.fullmatch(r"(\d+)\.ckpt", item.name.rpartition("/")[2]) for item in items)
    return Entry(
        key=key,
        made=_note(Made, contents.get(f"{key}/made.json")),
        lengths=tuple(sorted(int(match[1]) for match in lengths if match)),
        size=sum(item.size for item in items),
        uses=tuple(use for use in uses if use is not None),
    )


def _note(kind: type[Note], content: dict[str, Any] | None) -> Note | None:
    """What a small file says, or None where it is gone or says something else."""
    if content is None or content.keys() != {item.name for item in fields(kind)}:
        return None
    return kind(**content)


def ledger(everything: list[Entry]) -> list[Account]:
    """Every study's account, by name."""
    by_study: dict[str, list[Use]] = {}
    for entry in everything:
        for use in entry.uses:
            by_study.setdefault(use.study, []).append(use)
    return [
        Account(
            study=study,
            num_trials=len({use.identity for use in uses}),
            paid_seconds=math.fsum(use.paid_seconds for use in uses),
            reused_seconds=math.fsum(use.reused_seconds for use in uses),
        )
        for study, uses in sorted(by_study.items())
    ]


def size_text(size: int) -> str:
    """A size as a person says it: "1.5 GiB", "134.1 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def day_text(seconds: float) -> str:
    """The day (UTC) of a time in seconds since 1970; 0 is not known."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d") if seconds else "unknown"


def write_json(files: Files, name: str, content: object) -> None:
    """Write a small file."""
    files.write(name, json.dumps(content, indent=1).encode())


def read_json(files: Files, name: str) -> dict[str, Any] | None:
    """A small file's content, or None where it is gone, or another program's."""
    try:
        content = json.loads(files.read(name).to_pybytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def record_use(files: Files, key: str, use: Use) -> None:
    """Write down that a trial uses, or has used, what ``key`` holds."""
    write_json(files, f"{key}/uses/{use.study}.{use.identity}.json", asdict(use))


@contextmanager
def running(files: Files, study: str) -> Iterator[Callable[[], None]]:
    """Within, what ``study`` needs of the store is not pruned, as long as its heart beats.

    Gives the heartbeat, to be called at least every ten minutes. It writes at most once a minute, and never breaks a study.
    """
    name = f"running/{study}.{secrets.token_hex(4)}.json"
    since, beaten = time.time(), -math.inf

    def beat() -> None:
        nonlocal beaten
        if time.monotonic() - beaten < _BEAT_SECONDS:
            return
        beaten = time.monotonic()
        try:
            write_json(files, name, asdict(_Pulse(study=study, since=since, beat=time.time())))
        except OSError as error:
            log.warning("the experience store could not be told that study %r runs: %s", study, error)

    try:
        _running(files, forget=True)
    except OSError as error:  # they count as dead as it is
        log.warning("what dead studies left in the experience store could not be removed: %s", error)
    beat()
    try:
        yield beat
    finally:
        try:
            files.remove(name)
        except OSError as error:  # it is taken for dead soon
            log.warning("the experience store could not be told that study %r has ended: %s", study, error)


def _running(files: Files, *, forget: bool = False) -> dict[str, float]:
    """The studies that run now, and since when; ``forget`` those whose drivers died."""
    since: dict[str, float] = {}
    for item in files.find("running"):
        pulse = _note(_Pulse, read_json(files, item.name))
        if pulse is not None and time.time() - pulse.beat < STALE_SECONDS:
            since[pulse.study] = min(pulse.since, since.get(pulse.study, pulse.since))
        elif forget:
            files.remove(item.name)
    return since


def prune(files: Files, leases: Locks, budget: int, *, dry_run: bool = False) -> Pruned:
    """Remove the least recently used until the store takes at most ``budget`` bytes, but nothing that is needed.

    Needed is what a study that runs now has ever used, what was used since the first of these began, and what is being trained.

    Args:
        files: of the store.
        leases: that the store's trainers go by.
        budget: in bytes.
        dry_run: remove nothing; tell what would go.
    """
    whole = sum(item.size for item in files.find())
    if whole <= budget:  # without a look into each file
        return Pruned(removed=(), kept=(), size_before=whole, size_after=whole)
    everything, now_running = entries(files), _running(files)
    size_before = size = sum(entry.size for entry in everything)
    removed: list[Entry] = []
    kept: list[tuple[Entry, str]] = []
    for entry in sorted(everything, key=lambda entry: entry.used):
        if size <= budget:
            break
        reason = _why_needed(entry, now_running)
        if reason is None and not leases.try_acquire(entry.key):
            reason = "it is being trained"
        if reason is not None:
            kept.append((entry, reason))
            continue
        try:
            if not dry_run:
                (entry,) = entries(files, entry.key) or [entry]  # with what used it since we looked
                reason = _why_needed(entry, now_running)
                if reason is None:
                    files.remove_folder(entry.key)
        except OSError as error:  # a trial may write there at this very moment: nobody's study breaks of it
            reason = f"it could not be removed ({error})"
        finally:
            leases.release(entry.key)
        if reason is not None:
            kept.append((entry, reason))
            continue
        removed.append(entry)
        size -= entry.size
    return Pruned(removed=tuple(removed), kept=tuple(kept), size_before=size_before, size_after=size)


def _why_needed(entry: Entry, now_running: dict[str, float]) -> str | None:
    users = sorted({use.study for use in entry.uses} & now_running.keys())
    if users:
        return f"study {users[0]!r} is running and has used it"
    if now_running and entry.used >= min(now_running.values()):
        return f"it was used since study {min(now_running, key=lambda name: now_running[name])!r} began, which is running"
    return None
