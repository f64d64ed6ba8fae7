"""Every stored file of a study, held against its digest; nothing is changed, mended or set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from emoreg.data.prepared import is_whole
from emoreg.errors import UserError
from emoreg.results.ledger import FOLDER, Ledger
from emoreg.results.plan import PLAN, read_openings
from emoreg.results.predictions import PREDICTIONS
from emoreg.results.requests import REQUESTS, read_enqueued
from emoreg.results.tables import read_table
from emoreg.results.written import read_written
from emoreg.storage import checkpoint
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import read_json
from emoreg.storage.working_copy import join, scratch, split
from emoreg.tuning.optuna_storage import check_journal

_AGAIN = "it is made again when it is needed"


class Verified(NamedTuple):
    """A stored file: what it is, its name, and what is wrong with it; None where it is whole."""

    kind: str
    name: str
    problem: str | None


def verify(place: str) -> Iterator[Verified]:
    """Read every stored file of the study in a folder or at a URI: its own, the experiences that it has used, its image sets.

    Raises:
        OSError: where the storage does not answer.
    """
    files, (storage, name) = Files(place), split(place)
    store, prefixes = join(storage, "experience"), tuple[str, ...]()
    try:
        written = read_written(files)
    except UserError as error:
        yield Verified("study.json", "study.json", str(error))
    else:
        yield Verified("study.json", "study.json", None)
        store = written.config.experience.uri or store
        prefixes = tuple(f"{name}-{size}px-" for name, _, _, size, *_ in written.fingerprints)
    for found in sorted(found.name for found in files.find()):
        if found == PLAN:
            yield Verified("plan", found, _told(partial(read_openings, files)))
        elif found == "optuna.journal":
            yield Verified("Optuna's journal", found, _told(partial(_check_journal, files, found)))
        elif found.startswith("records/") and found.endswith(".parquet"):
            yield Verified("records", found, _told(partial(_read_table, files, found)))
        elif found.startswith("trials/") and found.endswith(PREDICTIONS):
            yield Verified("predictions", found, _told(partial(_read_table, files, found)))
        elif found.startswith(f"{REQUESTS}/enqueue."):
            problem = None if read_enqueued(files, found) else "it does not match its digest: it is passed over"
            yield Verified("requests", found, problem)
        elif found.startswith("trials/") and found.endswith(".ckpt"):
            yield Verified("checkpoints", found, _state(files, found))
    yield from _ledgers(files, storage)
    yield from _experiences(Files(store), name)
    yield from _image_sets(Files(join(storage, "imagesets")), prefixes)


def _ledgers(files: Files, storage: str) -> Iterator[Verified]:
    """The openings of the test splits that the study, a confirmation, has opened."""
    try:
        test_splits = dict.fromkeys(test_split for opening in read_openings(files) for test_split in opening.test_splits)
    except UserError:  # told already
        return
    for test_split in test_splits:
        yield Verified("ledger", f"{FOLDER}/{test_split}", _told(Ledger(storage, test_split).entries))


def _experiences(store: Files, study: str) -> Iterator[Verified]:
    names = sorted(found.name for found in store.find())
    used = {name.partition("/")[0] for name in names if f"/uses/{study}." in name}
    for name in names:
        if name.partition("/")[0] not in used:
            continue
        if name.endswith((".ckpt", ".partial")):
            yield Verified("experiences", f"experience/{name}", _state(store, name))
        elif name.endswith(".json"):
            problem = None if read_json(store, name) else "it does not match its digest: it is passed over"
            yield Verified("experiences", f"experience/{name}", problem)


def _image_sets(files: Files, prefixes: tuple[str, ...]) -> Iterator[Verified]:
    for name in sorted(found.name for found in files.find()):
        if name.endswith(".arrow") and name.startswith(prefixes):
            source = pa.BufferReader(files.read(name)) if files.folder is None else pa.memory_map(str(files.folder / name))
            problem = None if is_whole(source) else f"it does not match its digest: {_AGAIN}"
            yield Verified("image sets", f"imagesets/{name}", problem)


def _state(files: Files, name: str) -> str | None:
    try:
        problem = checkpoint.problem(files, name)
    except FileNotFoundError:  # overtaken by a newer one meanwhile
        return None
    return None if problem is None else f"{problem}: {_AGAIN}"


def _read_table(files: Files, name: str) -> None:
    read_table(pa.BufferReader(files.read(name)), name)


def _check_journal(files: Files, name: str) -> None:
    if files.folder is not None:
        check_journal(files.folder / name)
        return
    with scratch() as folder:  # Optuna reads a file of this machine
        (folder / name).write_bytes(files.read(name).to_pybytes())
        check_journal(folder / name)


def _told(read: Callable[[], object]) -> str | None:
    """What is said of a file that cannot be read."""
    try:
        read()
    except UserError as error:
        return str(error)
    return None
