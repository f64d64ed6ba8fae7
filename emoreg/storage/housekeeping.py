"""What an experience store holds, who used it, and what may go. Reads small files only, and needs no torch.

Layout, below the store's folder: ``<key>/<epochs>.ckpt`` snapshots, ``<key>/<epochs>+<steps>.partial`` the newest state in
between, ``<key>/made.json`` what made it, ``<key>/uses/<study>.<identity>.json`` what a trial had of it, and ``running/*.json``
the studies that run now.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from emoreg.storage.files import Files, Found
from emoreg.storage.locks import Locks
from emoreg.storage.sealed import seal, unseal

STALE_SECONDS = 600.0
"""A study without a heartbeat for so long runs no more."""
_BEAT_SECONDS = 60.0
_READERS = 16
_KEY = re.compile(r"[0-9a-f]{16}")
_SNAPSHOT = re.compile(r"(\d+)\.ckpt")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What one trial of one study had of an experience, in seconds of pre-training.

    Attributes:
        paid_seconds: trained by this trial, over all its attempts.
        experience_seconds: of the whole experience, whoever paid; 0 until the trial has it.
        waiting_seconds: that the trial waited for another one to train it.
        time: of the use, in seconds since 1970.
    """

    study: str
    identity: str
    epochs: int
    paid_seconds: float = 0.0
    experience_seconds: float = 0.0
    waiting_seconds: float = 0.0
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One shared pre-training run: everything under one key.

    Attributes:
        description: what made it; None if that was not written down.
        created: when it was begun, in seconds since 1970; 0 if nobody knows.
        lengths: epochs of its snapshots.
        size: in bytes, with partial results and files that were set aside.
    """

    key: str
    description: str | None
    created: float
    lengths: tuple[int, ...]
    size: int
    uses: tuple[Use, ...]

    @property
    def last_used(self) -> float:
        """When it was last used, or begun, in seconds since 1970; 0 if nobody knows."""
        return max([self.created, *(use.time for use in self.uses)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What a pruning did: the entries that went, those that would have but must stay, with the reason, and sizes in bytes."""

    removed: tuple[Entry, ...]
    kept: tuple[tuple[Entry, str], ...]
    size_before: int
    size_after: int

    @property
    def messages(self) -> list[str]:
        """What was done, a sentence each; none if nothing had to go."""
        return [
            f"experience {entry.key} removed: {size_text(entry.size)}, last used {day_text(entry.last_used)}"
            for entry in self.removed
        ] + [f"experience {entry.key} kept: {size_text(entry.size)}, {reason}" for entry, reason in self.kept]


def entries(files: Files, key: str = "") -> list[Entry]:
    """List everything that the store holds, by key; or only what is under ``key``, if anything."""
    by_key: dict[str, list[Found]] = {}
    for item in files.find(key):
        folder = item.name.partition("/")[0]
        if _KEY.fullmatch(folder):
            by_key.setdefault(folder, []).append(item)
    notes = [item.name for items in by_key.values() for item in items if item.name.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as readers:  # each is a round trip in an object store
        contents = dict(zip(notes, readers.map(lambda name: read_json(files, name), notes), strict=True))
    return [_entry(folder, items, contents) for folder, items in sorted(by_key.items())]


def _entry(key: str, items: list[Found], contents: Mapping[str, dict[str, Any]]) -> Entry:
    made = contents.get(f"{key}/made.json", {})
    notes = [contents[item.name] for item in items if item.name.startswith(f"{key}/uses/") and item.name in contents]
    snapshots = (_SNAPSHOT.fullmatch(item.name.removeprefix(f"{key}/")) for item in items)
    return Entry(
        key=key,
        description=made.get("description"),
        created=made.get("time", 0.0),
        lengths=tuple(sorted(int(match[1]) for match in snapshots if match)),
        size=sum(item.size for item in items),
        uses=tuple(Use(**note) for note in notes if note.keys() == {field.name for field in fields(Use)}),
    )


def size_text(size: int) -> str:
    """Write a size for a person: "1.5 GiB", "134.1 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def day_text(seconds: float) -> str:
    """Write the day (UTC) of a time in seconds since 1970; 0 is not known."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d") if seconds else "unknown"


def write_json(files: Files, name: str, content: Mapping[str, Any]) -> None:
    """Write a small file."""
    files.write(name, seal(content))


def read_json(files: Files, name: str) -> dict[str, Any]:
    """Read a small file; an empty object if it is gone, damaged, or another program's."""
    try:
        return unseal(files.read(name))
    except (FileNotFoundError, ValueError):
        return {}


def record_use(files: Files, key: str, use: Use) -> None:
    """Write down that a trial uses, or has used, what ``key`` holds."""
    write_json(files, f"{key}/uses/{use.study}.{use.identity}.json", asdict(use))


@contextmanager
def running(files: Files, study: str, *, is_alone: bool = False) -> Iterator[Callable[[], None]]:
    """Within, what ``study`` needs of the store is not pruned, as long as its heartbeat is called.

    The heartbeat, which this gives, is to be called at least every ten minutes. It writes at most once a minute, and never
    breaks a study. First goes what dead drivers have left: of this study at once where no other can be living (``is_alone``).
    """
    name = f"running/{study}.{secrets.token_hex(4)}.json"
    since, last_beat = time.time(), -math.inf

    def beat() -> None:
        nonlocal last_beat
        if time.monotonic() - last_beat >= _BEAT_SECONDS:
            last_beat = time.monotonic()
            note = {"study": study, "since": since, "beat": time.time()}
            _warn_of_errors(files, f"could not be told that study {study!r} runs", lambda: write_json(files, name, note))

    dead = study if is_alone else None
    _warn_of_errors(files, "still lists studies that died", lambda: _running(files, forget=True, dead=dead))
    beat()
    try:
        yield beat
    finally:
        _warn_of_errors(files, f"could not be told that study {study!r} has ended", lambda: files.remove(name))


def _warn_of_errors(files: Files, problem: str, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        log.warning("the experience store in %s %s: %s", files.uri, problem, error)


def _running(files: Files, *, forget: bool = False, dead: str | None = None) -> dict[str, float]:
    """The studies that run now, and since when; ``forget`` removes the notes of dead drivers, as are all of ``dead``."""
    since: dict[str, float] = {}
    for item in files.find("running"):
        note = read_json(files, item.name)
        is_note = note.keys() == {"study", "since", "beat"} and note["study"] != dead
        if is_note and time.time() - note["beat"] < STALE_SECONDS:
            since[note["study"]] = min(note["since"], since.get(note["study"], math.inf))
        elif forget:
            files.remove(item.name)
    return since


def prune(files: Files, locks: Locks, budget: int, *, dry_run: bool = False) -> Pruned:
    """Remove the least recently used until the store takes at most ``budget`` bytes, but nothing that is needed.

    Needed is what a study that runs now has ever used, what was used since the first of these began, and what is being trained
    by ``locks``. A ``dry_run`` removes nothing and tells what would go.
    """
    size = sum(item.size for item in files.find())
    if size <= budget:  # without reading each file
        return Pruned(removed=(), kept=(), size_before=size, size_after=size)
    everything, now_running = entries(files), _running(files)
    size_before = size = sum(entry.size for entry in everything)
    removed: list[Entry] = []
    kept: list[tuple[Entry, str]] = []
    for entry in sorted(everything, key=lambda entry: entry.last_used):
        if size <= budget:
            break
        reason = _why_needed(entry, now_running) or _remove(files, locks, entry, now_running, dry_run=dry_run)
        if reason is not None:
            kept.append((entry, reason))
            continue
        removed.append(entry)
        size -= entry.size
    return Pruned(removed=tuple(removed), kept=tuple(kept), size_before=size_before, size_after=size)


def _remove(files: Files, locks: Locks, entry: Entry, now_running: Mapping[str, float], *, dry_run: bool) -> str | None:
    """Remove an entry, or say why it must stay."""
    if not locks.try_acquire(entry.key):
        return "it is being trained"
    try:
        if dry_run:
            return None
        (entry,) = entries(files, entry.key) or [entry]  # with what has used it meanwhile
        reason = _why_needed(entry, now_running)
        if reason is None:
            files.remove_folder(entry.key)
        return reason
    except OSError as error:  # a trial may write there at this very moment: nobody's study breaks of it
        return f"it could not be removed ({error})"
    finally:
        locks.release(entry.key)


def _why_needed(entry: Entry, now_running: Mapping[str, float]) -> str | None:
    users = sorted({use.study for use in entry.uses} & now_running.keys())
    if users:
        return f"study {users[0]!r} is running and has used it"
    if now_running and entry.last_used >= min(now_running.values()):
        first = min(now_running, key=lambda name: now_running[name])
        return f"it was used since study {first!r} began, which is running"
    return None
