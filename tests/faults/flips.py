"""One-bit flips over every kind of file that a finished study has stored, each read as the library reads it.

A kind of file is read whole, flipped, and absent. A flip is refused by name, healed (read as if the file were absent, where
that only means that work is done again), without effect, silent (something else is read, without a word) or a traceback.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import optuna
import pyarrow as pa
import torch

from emoreg.config import StudyConfig, to_json
from emoreg.config.resolved import Fingerprints, resolve_trial
from emoreg.data import prepared
from emoreg.errors import Diverged, StorageError, UserError
from emoreg.results.ledger import FOLDER, Ledger
from emoreg.results.plan import PLAN, confirming, opening_of, read_openings, write_openings
from emoreg.results.planning import choose, plan_trials
from emoreg.results.predictions import read_predictions
from emoreg.results.records import utc_now
from emoreg.results.status import Live, live_name, parse_live, read_status
from emoreg.results.study import load_results
from emoreg.results.tables import Records
from emoreg.results.written import read_written
from emoreg.storage import checkpoint, housekeeping
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use
from emoreg.storage.locks import FileLocks
from emoreg.storage.sealed import seal
from emoreg.tuning.images import count_images, prepare_image_sets
from emoreg.tuning.manifest import refuse_changes, write_manifest
from emoreg.tuning.optuna_study import count_proposed, is_own, open_study, replaced
from emoreg.tuning.reconcile import reconcile
from tests.faults.harness import FAULTS, Ground, Tally
from tests.faults.study import NAME, config
from tests.helpers.written import TEST_SPLIT, fixed

Reader = Callable[[Path], object]
"""Reads a file, or what it is a part of; what it gives has a ``repr`` that tells its content."""

DATABASE, LIVE_RUN = "optuna.db", 99
USE = Use(study="flips", identity="flips", epochs=0, time=1.0)


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        pattern: of their paths in the storage.
        readers: that all read every such file.
        heals: whether it may be read as if it were absent.
    """

    pattern: str
    readers: tuple[Reader, ...]
    heals: bool = False


class _PreparedAgain(Exception):
    """What was prepared is not used."""


def read_image_set(path: Path, *, keys: dict[str, str]) -> object:
    prepared._found_whole.clear()  # as a process does that begins

    def make(path: Path) -> None:
        raise _PreparedAgain

    try:
        found = prepared.obtain(path, path.stem.rsplit("-", 2)[0], keys[path.name], make)
    except _PreparedAgain:
        return "prepared again"
    assert found is not None
    digest = hashlib.sha256()
    for split in (found.train, found.test):
        for values in (split.images, split.targets):
            digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
    return found.name, found.class_names, found.regression, found.fingerprint, found.summary, digest.hexdigest()


def read_results(path: Path) -> object:
    results = load_results(_study_of(path))
    if results.problems:  # told beside what is known
        raise StorageError(results.problems[0])
    return results


def read_records(path: Path) -> object:
    records = Records(_study_of(path))
    return records.trials, records.epochs, records.evaluations, records.probes, records.runs


def read_the_predictions(path: Path) -> object:
    predictions = read_predictions(Files(str(path.parents[2])), identity=path.parent.name)
    return None if predictions is None else predictions.to_pylist()


def read_the_status(path: Path) -> object:
    return read_status(str(_study_of(path)))


def read_manifest(path: Path) -> object:
    return read_written(Files(str(path.parent)))


def read_plan(path: Path) -> object:
    return read_openings(Files(str(path.parent)))


def read_ledger(path: Path) -> object:
    return Ledger(str(path.parents[2]), path.parent.name).entries()


def read_journal(path: Path) -> object:
    study = open_study(config(), path.parent)
    return study.metric_names, study.directions, study.get_trials(deepcopy=False)


def read_database(path: Path, *, study: StudyConfig, fingerprints: Fingerprints) -> object:
    """What a sampler learns from, once the history is in line with the records."""
    study = dataclasses.replace(study, optuna_storage=f"sqlite:///{path}")
    resolved = partial(resolve_trial, fingerprints=fingerprints)
    history = open_study(study, path.parent)
    reconcile(history, study, Records(path.parent / NAME).trials, resolved)
    trials = history.get_trials(deepcopy=False)
    counting = [trial for trial in trials if is_own(trial) and trial.number not in replaced(trials)]
    by_params = sorted((sorted(trial.params.items()), trial.state.name, trial.values) for trial in counting)
    return history.metric_names, history.directions, count_proposed(history), by_params


def read_live(path: Path) -> object:
    return parse_live(path.read_bytes()) if path.exists() else None


def read_running(path: Path) -> object:
    """What would go if the store were to be emptied: nothing that a running study uses."""
    files = Files(str(path.parents[1]))
    pruned = housekeeping.prune(files, FileLocks.of(files), 0, dry_run=True)
    return [entry.key for entry in pruned.removed], [(entry.key, reason) for entry, reason in pruned.kept]


def read_checkpoint(path: Path) -> object:
    return _plain(checkpoint.load(Files(str(path.parent)), path.name))


def read_experience(path: Path) -> object:
    """What a trial is given that asks for this snapshot, or for one more than there is."""
    epochs = int(path.stem) if path.suffix == ".ckpt" else 1000
    store = ExperienceStore(Files(str(path.parents[1])))
    try:
        with store.acquire(path.parent.name, dataclasses.replace(USE, epochs=epochs), lambda: False) as acquired:
            return acquired.is_holder, path.suffix == ".ckpt" and _plain(acquired.state)
    except Diverged as diverged:
        return str(diverged)


def read_notes(path: Path) -> object:
    files = Files(str(next(parent for parent in path.parents if parent.name == "experience")))
    return [dataclasses.replace(entry, size=0) for entry in housekeeping.entries(files)]


def _plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _study_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "records" else path.parent


OF_RECORDS: tuple[Reader, ...] = (read_results, read_records)
KINDS = {
    "a prepared image set": Kind("imagesets/*.arrow", (), heals=True),
    "trials.parquet": Kind(f"{NAME}/records/trials.parquet", (*OF_RECORDS, read_the_status)),
    "epochs.parquet": Kind(f"{NAME}/records/epochs.parquet", OF_RECORDS),
    "evaluations.parquet": Kind(f"{NAME}/records/evaluations.parquet", OF_RECORDS),
    "a trial's predictions": Kind(f"{NAME}/trials/*/predictions.parquet", (read_the_predictions,)),
    "probes.parquet": Kind(f"{NAME}/records/probes.parquet", OF_RECORDS),
    "runs.parquet": Kind(f"{NAME}/records/runs.parquet", (*OF_RECORDS, read_the_status)),
    "study.json": Kind(f"{NAME}/study.json", (read_manifest, read_results, read_the_status)),
    "plan.json": Kind(f"{NAME}.confirm/{PLAN}", (read_plan, read_results)),
    "an opening of a test split": Kind(f"{FOLDER}/*/*.json", (read_ledger,)),
    "optuna.journal": Kind(f"{NAME}/optuna.journal", (read_journal,)),
    "an SQLite history": Kind(DATABASE, ()),
    "a note of what runs now": Kind(f"{NAME}/{live_name(LIVE_RUN)}", (read_live,), heals=True),
    "a note that a study uses the store": Kind("experience/running/*.json", (read_running,), heals=True),
    "a trial's checkpoint": Kind(f"{NAME}/trials/*/trial.ckpt", (read_checkpoint,), heals=True),
    "an experience": Kind("experience/*/*.ckpt", (read_experience,), heals=True),
    "a note of what made an experience": Kind("experience/*/made.json", (read_notes,), heals=True),
    "a note of who used an experience": Kind("experience/*/uses/*.json", (read_notes,), heals=True),
    "a note that an experience diverges": Kind("experience/*/diverged.json", (read_experience,), heals=True),
}


class Flipped:
    """A copy of a finished study, whose bits are flipped."""

    def __init__(self, undisturbed: Path, storage: Path) -> None:
        """Copy a storage, and add what only other studies have, and those that run: a confirmation's plan, a database..."""
        shutil.copytree(undisturbed, storage)
        self._storage = storage
        study = dataclasses.replace(config(), storage=str(storage))
        fingerprints = prepare_image_sets(study)
        _plan_a_confirmation(study, storage)
        store = ExperienceStore(Files(str(storage / "experience")))
        key = min(path.name for path in storage.glob("experience/*") if (path / "made.json").exists())
        store.note_diverged(key, 6, 17)
        for snapshot in storage.glob("experience/*/*.ckpt"):
            housekeeping.record_use(store.files, snapshot.parent.name, USE)
        housekeeping.write_json(
            store.files, "running/flips.0.json", {"study": "flips", "since": time.time(), "beat": time.time()}
        )
        (storage / NAME / live_name(LIVE_RUN)).write_bytes(seal(to_json(Live(time=utc_now(), slots=2, waiting=1, running=()))))
        optuna.copy_study(
            from_study_name=NAME,
            from_storage=open_study(study, storage / NAME)._storage,
            to_storage=f"sqlite:///{storage / DATABASE}",
        )
        keys = {path.name: _key_of(path) for path in storage.glob("imagesets/*.arrow")}
        self._more: dict[str, Reader] = {
            "a prepared image set": partial(read_image_set, keys=keys),
            "an SQLite history": partial(read_database, study=study, fingerprints=fingerprints),
            "study.json": lambda path: refuse_changes(study, path.parent, fingerprints),
        }

    def flip(self, name: str, num_flips: int, chance: Random) -> Tally:
        """Flip random bits of random files of one kind, one at a time."""
        kind = KINDS[name]
        readers = [*kind.readers, *([self._more[name]] if name in self._more else [])]
        tally, paths = Tally(), sorted(self._storage.glob(kind.pattern))
        assert paths, f"the study has no {name}"
        answers: dict[Path, list[tuple[str, str | None]]] = {}
        for _ in range(num_flips):
            path = chance.choice(paths)
            content = path.read_bytes()
            if path not in answers:
                answers[path] = [_answers(path, reader, content, heals=kind.heals) for reader in readers]
            place, bit = chance.randrange(len(content)), chance.randrange(8)
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            _put(path, bytes(flipped))
            found = [_judge(path, reader, *known) for reader, known in zip(readers, answers[path], strict=True)]
            _restore(path, content)
            verdict, words = min(found, key=lambda one: _WORST_FIRST.index(one[0]))
            tally.tried += 1
            tally.answers[verdict] += 1
            tally.silent += verdict == "silent"
            tally.tracebacks += verdict == "traceback"
            if verdict in ("silent", "traceback"):
                tally.notes.append(f"bit {bit} of byte {place} of {len(content)} of {path.name}: {verdict}: {words}")
        return tally


_WORST_FIRST = ("silent", "traceback", "refused", "healed", "unchanged")


def _judge(path: Path, reader: Reader, whole: str, absent: str | None) -> tuple[str, str]:
    """What a reader makes of a flipped file, in a word and in full."""
    try:
        read = repr(reader(path))
    except UserError as refused:
        return "refused", str(refused)
    except Exception as error:  # noqa: BLE001 - whichever it is: a user would see its traceback
        return "traceback", repr(error)
    if read == whole:
        return "unchanged", ""
    return ("healed", "") if read == absent else ("silent", read)


def _answers(path: Path, reader: Reader, content: bytes, *, heals: bool) -> tuple[str, str | None]:
    """What a reader says of the whole file and, where that is no loss, of none."""
    whole = repr(reader(path))
    absent = None
    if heals:
        path.unlink()
        absent = repr(reader(path))
    _restore(path, content)
    return whole, absent


def _put(path: Path, content: bytes) -> None:
    """Make a file of its own of the content: others may have mapped the former one."""
    path.with_name("put").write_bytes(content)
    os.replace(path.with_name("put"), path)


def _restore(path: Path, content: bytes) -> None:
    _put(path, content)
    path.with_name(f"{path.name}.bad").unlink(missing_ok=True)


def _key_of(path: Path) -> str:
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        return str(file.schema.metadata[b"emoreg.key"].decode())


def _plan_a_confirmation(study: StudyConfig, storage: Path) -> None:
    trials = [*Records(storage / NAME).trials.values()]
    fingerprints = prepare_image_sets(study)
    plan = plan_trials(study, choose(study, trials, 1), (100, 101), images=count_images(study), fingerprints=fingerprints)
    folder = storage / f"{NAME}.confirm"
    folder.mkdir()
    write_manifest(confirming(study, plan), folder, fingerprints)
    write_openings(Files(str(folder)), [fixed(storage, NAME, opening_of(plan, 0.5, trials, (TEST_SPLIT,)))])


def _register(name: str) -> None:
    def flip(ground: Ground, chance: Random) -> Tally:
        with _quietly():
            return Flipped(ground.undisturbed, ground.new_folder("flipped")).flip(name, ground.flips, chance)

    FAULTS[f"a bit flipped in {name}"] = flip


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, the library does not warn of each damage."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


for _name in KINDS:
    _register(_name)
