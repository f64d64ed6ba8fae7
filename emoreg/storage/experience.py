"""Experiences: what pre-training leaves in an encoder, kept by content so that no trial pays for one twice.

The store keeps the states of shared pre-training runs by key and epochs (``housekeeping`` has the layout). Trials with the same
key share one run: the holder of its lock trains it; the others wait for the snapshot that they need, and go on as soon as it is
there.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emoreg.errors import Diverged, Interrupted
from emoreg.storage import checkpoint, files, housekeeping
from emoreg.storage.checkpoint import State
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use
from emoreg.storage.locks import FileLocks, Locks

_POLL_SECONDS = 0.2
_STATE = re.compile(r"(\d+)(?:\.ckpt|\+(\d+)\.partial)")

Place = tuple[int, int]
"""How far a state is: whole epochs, and steps of the next one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Acquired:
    """What a trial gets of a shared run, and how long it waited for it.

    The state is the snapshot that the trial asked for or, for the holder of the lock, who alone may train and write, the
    farthest state on the way there, if any.
    """

    state: State | None
    is_holder: bool
    waiting_seconds: float = 0.0


class ExperienceStore:
    """Experiences in a folder or an object store, shared by all trials that can reach it.

    Attributes:
        files: where they lie.
        user: the study on whose behalf the store is used.
    """

    def __init__(
        self,
        place: str | Files,
        *,
        locks: Locks | None = None,
        user: str = "",
        keep: Collection[int] = (),
        share: bool = True,
    ) -> None:
        """Open a store, which need not be there yet.

        Args:
            place: a folder, a URI that pyarrow can open, or the files there.
            locks: of the shared runs; None for file locks, which serve the processes that see the folder or, for an object
                store, those of this machine.
            user: name of the study.
            keep: lengths in epochs, each of which is kept as a snapshot when a run passes it. So are powers of two, the
                length that the trial asks for, and lengths that others wait for.
            share: False gives each trial of each study a run of its own.

        Raises:
            StorageError: for a URI that cannot be used.
        """
        self.files = place if isinstance(place, Files) else Files(place)
        self.locks = locks if locks is not None else FileLocks.of(self.files)
        self.user = user
        self._keep = frozenset(keep)
        self._share = share

    def salt(self, identity: str) -> str:
        """Return what makes the keys of a trial its own, if they shall be."""
        return "" if self._share else f"{self.user}/{identity}"

    @contextmanager
    def acquire(self, key: str, use: Use, should_stop: Callable[[], bool]) -> Iterator[Acquired]:
        """Get the snapshot after ``use.epochs`` epochs or, within, the lock to train it: whichever comes first.

        The use is written down first, so that nobody prunes what is about to be used.

        Raises:
            Interrupted: the trial was asked to stop while it waited.
            Diverged: the run is known to diverge on the way; it would again.
            OSError: the store cannot be read or written.
        """
        state = self._snapshot(key, use.epochs)
        if state is not None:
            yield Acquired(state, is_holder=False)
            return
        housekeeping.record_use(self.files, key, use)
        started, is_waiting = time.monotonic(), False
        while not self.locks.try_acquire(key):
            if should_stop():
                raise Interrupted("the trial was asked to stop while it waited for an experience: run it again to go on")
            if not is_waiting:
                is_waiting = True
                log.info("waiting for another trial to pre-train %s for %d epochs", key, use.epochs)
                self.files.write(f"{key}/{use.epochs}.wanted", b"")
            time.sleep(_POLL_SECONDS)
            state = self._snapshot(key, use.epochs)
            if state is not None:
                yield Acquired(state, is_holder=False, waiting_seconds=time.monotonic() - started)
                return
        try:
            waiting_seconds = time.monotonic() - started if is_waiting else 0.0
            self._refuse_diverged(key, use.epochs)
            yield Acquired(self._nearest(key, use.epochs), is_holder=True, waiting_seconds=waiting_seconds)
        finally:
            self.locks.release(key)

    def write(self, key: str, state: State, is_snapshot: bool) -> None:
        """Write a state, then remove the partial ones that it overtakes. For the holder of the lock."""
        place = (state["epoch"], state["step_in_epoch"])
        name = f"{place[0]}.ckpt" if is_snapshot else "{}+{}.partial".format(*place)
        checkpoint.save(self.files, f"{key}/{name}", {**state, "key": key})
        for other, passed in self._states(key):
            if other.endswith(".partial") and passed <= place and other != name:
                self.files.remove(f"{key}/{other}")
        if is_snapshot:
            self.files.remove(f"{key}/{place[0]}.wanted")

    def keeps(self, key: str, epochs: int) -> bool:
        """Whether the state after ``epochs`` epochs is to be a snapshot, for other trials than the one that trains."""
        is_kept = epochs.bit_count() == 1 or epochs in self._keep or self.files.exists(f"{key}/{epochs}.wanted")
        return self._share and is_kept

    def note_diverged(self, key: str, epochs: int, step: int) -> None:
        """Write down that the run diverges at ``step``, after ``epochs`` whole epochs."""
        housekeeping.write_json(self.files, f"{key}/diverged.json", {"epochs": epochs, "step": step})

    def describe(self, key: str, description: str, details: Mapping[str, Any]) -> None:
        """Write down what makes the experience, unless it was: in a line for people, and in full."""
        if not self.files.exists(f"{key}/made.json"):
            note = {"description": description, "time": time.time(), **details}
            housekeeping.write_json(self.files, f"{key}/made.json", note)

    def sweep(self) -> None:
        """Remove the temporary files of dead writers; an object store has none."""
        if self.files.folder is not None:
            files.sweep(self.files.folder)

    def _snapshot(self, key: str, epochs: int) -> State | None:
        """The snapshot after ``epochs`` epochs, if it is there and can be trusted. Its tensors lie in the file."""
        return self._load(key, f"{epochs}.ckpt", (epochs, 0), in_place=True)

    def _nearest(self, key: str, epochs: int) -> State | None:
        """The farthest state that can be trusted and goes not beyond ``epochs`` epochs."""
        names = {place: name for name, place in self._states(key) if place <= (epochs, 0)}
        states = (self._load(key, names[place], place) for place in sorted(names, reverse=True))
        return next((state for state in states if state is not None), None)

    def _refuse_diverged(self, key: str, epochs: int) -> None:
        note = housekeeping.read_json(self.files, f"{key}/diverged.json")
        if note.keys() == {"epochs", "step"} and epochs > note["epochs"]:
            raise Diverged("pretraining", note["step"])

    def _states(self, key: str) -> list[tuple[str, Place]]:
        """The states under a key: their names, and how far they are."""
        names = [found.name.rpartition("/")[2] for found in self.files.find(key, deep=False)]
        matches = [_STATE.fullmatch(name) for name in names]
        return [(match[0], (int(match[1]), int(match[2] or 0))) for match in matches if match]

    def _load(self, key: str, name: str, place: Place, *, in_place: bool = False) -> State | None:
        expected = {"key": key, "epoch": place[0], "step_in_epoch": place[1]}
        return checkpoint.load(self.files, f"{key}/{name}", expected=expected, in_place=in_place)
