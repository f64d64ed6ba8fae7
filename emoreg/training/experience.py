"""Experiences: what pre-training leaves in an encoder, kept by content so that no trial pays for one twice.

The store keeps the emotional net by key and epochs (``housekeeping`` has the layout). The key is the hash of all that decides
the weights, except the length: where pre-training's schedule does not know its end, a longer experience continues a shorter
one, and trials that differ in regulation or length share a trunk. One holder of a lease at a time trains a trunk; the others
wait for the snapshot that they need, and go on as soon as it is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import emoreg
from emoreg.config import ImageSetConfig, TrialConfig
from emoreg.data.batches import Batches
from emoreg.errors import ConfigError, Diverged, Interrupted
from emoreg.results.records import EpochRecord
from emoreg.storage import checkpoint, files, housekeeping
from emoreg.storage.checkpoint import State, Untrusted, Writer
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Entry, Made, Pruned, Use
from emoreg.storage.locks import FileLocks, Locks
from emoreg.storage.retry import Patience
from emoreg.training.devices import device_name
from emoreg.training.oom import Relief
from emoreg.training.optim import length_dependence, uses_bf16
from emoreg.training.pretrain import EmotionalNet, pretrain

TRAINER_VERSION = 1
"""Raised when the numbers of pre-training change: old snapshots are then left alone."""
_POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gained:
    """What an experience took.

    Attributes:
        paid_seconds: of pre-training by this trial, over all its attempts; 0 where others had paid.
        cost_seconds: of the whole experience, whoever paid.
        waiting_seconds: that this attempt waited for another trial to train it.
        relief: what it took to fit in memory where this trial trained; nothing where others had.
    """

    paid_seconds: float
    cost_seconds: float
    waiting_seconds: float
    relief: Relief = Relief()


def experience_key(
    config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device, *, salt: str = ""
) -> str:
    """Sixteen hexadecimal digits that differ whenever the weights would.

    Args:
        config: the applied configuration.
        source: which images of the set are trained on: the stimuli, or the neutral set cut to their number.
        fingerprint: of the whole set, which stands for its name, path and target.
        device: a CPU and a GPU round differently; it also decides what precision "auto" means.
        salt: makes the key the caller's own.
    """
    return _hash(_decisive(config, source, fingerprint, device), salt)


def _decisive(config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """All that decides the weights after any number of epochs."""
    images = asdict(source)
    del images["name"], images["path"], images["target"]
    return {
        "trainer": TRAINER_VERSION,
        "backbone": config.backbone,
        "drop_path": config.drop_path,
        "weights": _weights_digest(config.weights),
        "image_size": config.image_size,
        "images": images,
        "fingerprint": fingerprint,
        "pretraining": _pretraining(config),
        "seed": config.seed,
        "deterministic": config.deterministic,
        "bf16": uses_bf16(config, device),
        "device": device.type,
    }


def trunk(config: TrialConfig) -> str | None:
    """A name that trials have in common where they share a trunk, or None for a trial that needs no experience.

    Looks at the configuration alone, so that the driver can order trials by it: the images and weights that the configuration
    names count by name, and not, as in ``experience_key``, by content.
    """
    config = config.applied()
    if config.pretraining.epochs == 0 or not config.regulation.needs_emotional:
        return None
    parts = {
        "backbone": config.backbone,
        "drop_path": config.drop_path,
        "weights": config.weights,
        "image_size": config.image_size,
        "stimuli": asdict(config.stimuli),
        "neutral": asdict(config.neutral) if config.control == "neutral" and config.neutral is not None else None,
        "pretraining": _pretraining(config),
        "seed": config.seed,
        "deterministic": config.deterministic,
        "precision": config.precision,
    }
    return _hash(parts, "")


def _pretraining(config: TrialConfig) -> dict[str, Any]:
    """The settings of pre-training, with its length only where a longer one does not continue a shorter one."""
    settings = asdict(config.pretraining)
    if length_dependence(config.pretraining) is None:
        del settings["epochs"]
    return settings


def _hash(parts: dict[str, Any], salt: str) -> str:
    text = json.dumps(parts, sort_keys=True) + salt
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_digest(weights: str | None) -> str | None:
    if weights is None or weights == "hub":
        return weights
    try:
        with open(Path(weights).expanduser(), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"weights must be a readable file, but {weights!r} is not ({error}): correct the path") from error


class ExperienceStore:
    """Experiences in a folder or an object store, shared by all trials that can reach it.

    Attributes:
        files: where they lie.
        leases: who may train what.
        user: the study on whose behalf the store is used.
    """

    def __init__(
        self,
        uri: str,
        *,
        leases: Locks | None = None,
        user: str = "",
        keep: Collection[int] = (),
        share: bool = True,
        patience: Patience | None = None,
    ) -> None:
        """Open a store, which need not be there yet.

        Args:
            uri: a folder, or a URI that pyarrow can open: see ``Files``.
            leases: of the trunks; None for file locks, which serve the processes that see the folder or, for an object store,
                those of this machine.
            user: name of the study.
            keep: lengths in epochs, each of which is kept as a snapshot when a trunk passes it. So are powers of two, the
                length that the trial asks for, and lengths that others wait for.
            share: False gives each trial of each study a trunk of its own.
            patience: see ``Files``.

        Raises:
            StorageError: for a URI that cannot be used.
        """
        self.files = Files(uri, patience=patience)
        self.leases = leases if leases is not None else FileLocks.of(self.files)
        self.user = user
        self._keep = frozenset(keep)
        self._share = share

    def salt(self, identity: str) -> str:
        """What makes the keys of a trial its own, if they shall be."""
        return "" if self._share else f"{self.user}/{identity}"

    def load(self, key: str, epochs: int) -> State | None:
        """The snapshot after ``epochs`` epochs, if it is there and can be trusted. Its tensors lie in the file: copy them."""
        return self._read(key, f"{epochs}.ckpt", (epochs, 0), in_place=True)

    def nearest(self, key: str, epochs: int) -> State | None:
        """The farthest state that can be trusted and goes not beyond ``epochs`` epochs. For the holder of the lease."""
        names = {place: name for name, place in self._states(key) if place <= (epochs, 0)}
        for place in sorted(names, reverse=True):
            state = self._read(key, names[place], place)
            if state is not None:
                return state
        return None

    def write(self, key: str, *, is_snapshot: bool, state: State) -> None:
        """Write a state, then remove the partial ones that it overtakes. For the holder of the lease."""
        place = (state["epochs"], state["steps"])
        name = f"{place[0]}.ckpt" if is_snapshot else "{}+{}.partial".format(*place)
        if self.files.folder is not None:
            checkpoint.save(self.files.folder / key / name, state)
        else:
            self.files.write(f"{key}/{name}", checkpoint.encode(state))
        for other, passed in self._states(key):
            if other.endswith(".partial") and passed <= place and other != name:
                self.files.remove(f"{key}/{other}")
        if is_snapshot:
            self.files.remove(f"{key}/{place[0]}.wanted")

    def want(self, key: str, epochs: int) -> None:
        """Ask whoever trains the trunk to keep a snapshot after ``epochs`` epochs, when it passes there."""
        self.files.write(f"{key}/{epochs}.wanted", b"")

    def keeps(self, key: str, epochs: int) -> bool:
        """Whether the state after ``epochs`` epochs is to be a snapshot, for other trials than the one that trains."""
        is_kept = epochs.bit_count() == 1 or epochs in self._keep or self.files.exists(f"{key}/{epochs}.wanted")
        return self._share and is_kept

    def note_diverged(self, key: str, epochs: int, step: int) -> None:
        """Write down that the trunk diverges at ``step``, after ``epochs`` whole epochs."""
        housekeeping.write_json(self.files, f"{key}/diverged.json", {"epochs": epochs, "step": step})

    def refuse_diverged(self, key: str, epochs: int) -> None:
        """Raise Diverged where the trunk is known not to come to ``epochs`` epochs: it would diverge again."""
        note = housekeeping.read_json(self.files, f"{key}/diverged.json")
        if note is not None and epochs > note["epochs"]:
            raise Diverged("pretraining", note["step"])

    def describe(self, key: str, made: Made) -> None:
        """Write down what makes the experience, unless it was."""
        if not self.files.exists(f"{key}/made.json"):
            housekeeping.write_json(self.files, f"{key}/made.json", asdict(made))

    def entries(self) -> list[Entry]:
        """Everything that the store holds."""
        return housekeeping.entries(self.files)

    def prune(self, budget: int, *, dry_run: bool = False) -> Pruned:
        """Bring the store down to ``budget`` bytes: see ``housekeeping.prune``."""
        return housekeeping.prune(self.files, self.leases, budget, dry_run=dry_run)

    def running(self, study: str) -> AbstractContextManager[Callable[[], None]]:
        """Within, what ``study`` needs is not pruned; gives its heartbeat: see ``housekeeping.running``."""
        return housekeeping.running(self.files, study)

    def sweep(self) -> None:
        """Remove the temporary files of dead writers; an object store has none."""
        if self.files.folder is not None:
            files.sweep(self.files.folder)

    def _states(self, key: str) -> list[tuple[str, tuple[int, int]]]:
        """The states under a key: their names, and how far they are in (epochs, steps)."""
        names = [found.name.rpartition("/")[2] for found in self.files.find(key, deep=False)]
        matches = [re.fullmatch(r"(\d+)(?:\.ckpt|\+(\d+)\.partial)", name) for name in names]
        return [(match[0], (int(match[1]), int(match[2] or 0))) for match in matches if match]

    def _read(self, key: str, name: str, place: tuple[int, int], *, in_place: bool = False) -> State | None:
        path = f"{key}/{name}"
        try:
            if self.files.folder is not None:
                state = checkpoint.read(self.files.folder / path, in_place=in_place)
            else:
                state = checkpoint.decode(memoryview(self.files.read(path)))
            if (state.get("key"), state.get("epochs"), state.get("steps")) != (key, *place):
                raise Untrusted("it is the state of something else")
        except FileNotFoundError:
            return None
        except Untrusted as fault:
            self.files.move(path, f"{path}.bad")
            log.warning(
                "%s/%s cannot be trusted: %s; it was set aside as %s.bad and its work is done again",
                self.files.uri,
                path,
                fault,
                name,
            )
            return None
        return state


def gain_experience(
    config: TrialConfig,
    net: EmotionalNet,
    stimuli: Batches,
    validation: Batches | None,
    *,
    regression: bool,
    source: ImageSetConfig,
    fingerprint: str,
    store: ExperienceStore,
    report: Callable[[EpochRecord], None],
    checkpoint_seconds: float,
    interrupted: Callable[[], bool],
) -> Gained:
    """Bring ``net`` to the state after ``config.pretraining.epochs`` epochs: loaded, continued, or trained from the start.

    Where another trial is training the trunk, this one waits for the snapshot that it needs, or for the lease.

    Args:
        config: the applied configuration.
        net: on the device already; changed in place.
        stimuli: training images.
        validation: held-out stimuli, or None.
        regression: targets are real numbers.
        source: which images of the set the stimuli are.
        fingerprint: of the whole set.
        store: where experiences are kept.
        report: told the epochs that this trial pays for, those of an earlier attempt included.
        checkpoint_seconds: least time between two states that are kept against a crash.
        interrupted: asked after every step, and while waiting, whether to stop.

    Raises:
        Diverged: see ``pretrain``.
        Interrupted: asked to stop; what was trained is safe.
        OSError: the store cannot be read or written.
    """
    epochs = config.pretraining.epochs
    if epochs == 0:
        return Gained(paid_seconds=0.0, cost_seconds=0.0, waiting_seconds=0.0)
    device = stimuli.device
    key = experience_key(config, source, fingerprint, device, salt=store.salt(config.identity))
    use = partial(Use, study=store.user, identity=config.identity, epochs=epochs)
    history = _History(config.identity, store.user, report)
    waiting_seconds = 0.0
    relief = Relief()

    state = store.load(key, epochs)
    if state is None:
        # Said before it is true, so that nobody prunes what is about to be used.
        now = time.time()
        begun = use(paid_seconds=0.0, experience_seconds=0.0, waiting_seconds=0.0, time=now)
        housekeeping.record_use(store.files, key, begun)
        state, waiting_seconds = _wait(store, key, epochs, interrupted)
    if state is not None:
        history.load(state)
        net.load_state_dict(state["net"])
        if history.ends_here:  # an earlier attempt got so far
            relief = Relief(**state["relief"])
        del state  # its file is mapped
    else:
        try:
            reason = length_dependence(config.pretraining)
            if reason is not None:
                log.warning("%s", reason)
            store.describe(key, _made(config, source, fingerprint, device))
            store.refuse_diverged(key, epochs)
            start = store.nearest(key, epochs)
            if start is not None:
                history.load(start)
            if start is not None and start["epochs"] == epochs:  # written between our last look and the lease
                net.load_state_dict(start["net"])
            else:
                with Writer() as writer:
                    keeper = _Keeper(
                        store, key, epochs, history, writer, checkpoint_seconds, interrupted, for_others=reason is None
                    )
                    try:
                        relief = pretrain(
                            config,
                            net,
                            stimuli,
                            validation,
                            regression=regression,
                            start=start,
                            keeper=keeper,
                            report=history.report,
                        )
                    except Diverged as diverged:
                        store.note_diverged(key, history.num_epochs, diverged.step)
                        raise
        finally:
            store.leases.release(key)
    gained = Gained(
        paid_seconds=history.paid_seconds,
        cost_seconds=history.cost_seconds,
        waiting_seconds=waiting_seconds,
        relief=relief,
    )
    used = use(
        paid_seconds=gained.paid_seconds,
        experience_seconds=gained.cost_seconds,
        waiting_seconds=waiting_seconds,
        time=time.time(),
    )
    housekeeping.record_use(store.files, key, used)
    return gained


def _wait(store: ExperienceStore, key: str, epochs: int, interrupted: Callable[[], bool]) -> tuple[State | None, float]:
    """Wait for the snapshot or for the lease, whichever comes first: the snapshot, or None with the lease taken.

    Returns:
        The second value is the seconds that it took.
    """
    started = time.monotonic()
    is_wanted = False
    while not store.leases.try_acquire(key):
        if interrupted():
            raise Interrupted("the trial was asked to stop while it waited for an experience: run it again to go on")
        if not is_wanted:
            store.want(key, epochs)
            is_wanted = True
        time.sleep(_POLL_SECONDS)
        state = store.load(key, epochs)
        if state is not None:
            return state, time.monotonic() - started
    return None, time.monotonic() - started if is_wanted else 0.0


def _made(config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device) -> Made:
    return Made(
        backbone=config.backbone,
        stimuli=source.name,
        seed=config.seed,
        shuffled=config.pretraining.shuffle_labels,
        settings=_decisive(config, source, fingerprint, device),
        versions={"emoreg": emoreg.__version__, "torch": torch.__version__, "python": platform.python_version()},
        device=device_name(device),
        time=time.time(),
    )


class _History:
    """The epochs of an experience and who paid for each."""

    def __init__(self, identity: str, study: str, report: Callable[[EpochRecord], None]) -> None:
        self._identity = identity
        self._study = study
        self._report = report
        self._rows: list[dict[str, Any]] = []

    def load(self, state: State) -> None:
        """Take over the epochs of a state, and report those that an earlier attempt of this very trial paid for."""
        self._rows = state["history"]
        for row in self._rows:
            if self._is_own(row):
                self._report(EpochRecord(**row["record"]))

    def report(self, record: EpochRecord) -> None:
        """Add an epoch of this trial, and report it."""
        self._rows.append(self._row(asdict(record)))
        self._report(record)

    def including(self, state: State) -> list[dict[str, Any]]:
        """What a state holds: after an epoch its record too, which is reported once the state is safe."""
        return [*self._rows, *([self._row(state["record"])] if "record" in state else [])]

    @property
    def num_epochs(self) -> int:
        return len(self._rows)

    @property
    def paid_seconds(self) -> float:
        return sum((row["record"]["seconds"] for row in self._rows if self._is_own(row)), 0.0)

    @property
    def cost_seconds(self) -> float:
        return sum((row["record"]["seconds"] for row in self._rows), 0.0)

    @property
    def ends_here(self) -> bool:
        """Whether this very trial trained the last epoch."""
        return self._is_own(self._rows[-1])

    def _row(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"study": self._study, "record": record}

    def _is_own(self, row: dict[str, Any]) -> bool:
        return bool(row["study"] == self._study and row["record"]["identity"] == self._identity)


class _Keeper:
    """Keeps the states of a trunk in the store. A ``checkpoint.Keeper``."""

    def __init__(
        self,
        store: ExperienceStore,
        key: str,
        epochs: int,
        history: _History,
        writer: Writer,
        checkpoint_seconds: float,
        interrupted: Callable[[], bool],
        *,
        for_others: bool,
    ) -> None:
        self._store = store
        self._key = key
        self._epochs = epochs
        self._history = history
        self._writer = writer
        self._checkpoint_seconds = checkpoint_seconds
        self._interrupted = interrupted
        self._for_others = for_others
        self._kept = time.monotonic()

    def due(self) -> bool:
        return self._interrupted() or time.monotonic() - self._kept >= self._checkpoint_seconds

    def keep(self, state: State) -> None:
        epochs, is_whole = state["epochs"], state["steps"] == 0
        is_snapshot = is_whole and (epochs == self._epochs or (self._for_others and self._store.keeps(self._key, epochs)))
        if not (is_snapshot or self.due()):
            return
        kept = {**state, "key": self._key, "history": self._history.including(state)}
        self._writer.submit(lambda copied: self._store.write(self._key, is_snapshot=is_snapshot, state=copied), kept)
        self._kept = time.monotonic()
        if self._interrupted():
            self._writer.flush()
            raise Interrupted("the trial was asked to stop, and its pre-training is safe: run it again to go on")
