"""The records on disk: Parquet tables that are replaced whole and atomically, so that a reader never sees half.

Parquet's own checksums leave out its footer, which says what the pages mean: each column's digest stands in the schema's
metadata, and whoever reads a column computes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from emoreg.errors import StorageError
from emoreg.results.records import (
    SCHEMA_VERSION,
    EpochRecord,
    EvaluationRecord,
    ProbeRecord,
    Provenance,
    Row,
    RunRecord,
    TrialRecord,
    schema,
    utc_now,
)
from emoreg.storage.files import replacing

_DIGESTS = b"emoreg.digests"


class _Table(Generic[Row]):
    """One table in memory and its file, which another driver of the study may replace. Some columns tell rows apart."""

    def __init__(self, folder: Path, name: str, row_type: type[Row], *key: str) -> None:
        self._path = folder / f"{name}.parquet"
        self._row_type: type[Row] = row_type
        self._key: Callable[[Row], Any] = attrgetter(*key)
        self._stamp: tuple[int, int, int] | None = None
        self._is_written = False  # all rows as they are, to the file with this stamp
        self.rows: dict[Any, Row] = {}
        self.merge(is_newer=True)

    def add(self, row: Row) -> None:
        self.rows[self._key(row)] = row
        self._is_written = False

    def merge(self, *, is_newer: bool) -> None:
        """Take in the rows of the file, if it was replaced by somebody else; they count more than those here if newer."""
        if self._now() == self._stamp:
            return
        for row in read_rows(self._path, self._row_type):
            if is_newer:
                self.rows[self._key(row)] = row
            else:
                self.rows.setdefault(self._key(row), row)
        self._stamp, self._is_written = self._now(), False

    def write(self) -> None:
        """Replace the file, unless it is the one that was written here and no row has come since."""
        if self._is_written and self._now() == self._stamp:
            return
        _write(self._path, self._row_type, list(self.rows.values()))
        self._stamp, self._is_written = self._now(), True

    def _now(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class Records:
    """The tables of one study, in memory: rows by what tells them apart. A later row replaces an earlier one.

    A trial taken up again from its checkpoint never doubles an epoch. If a study has several drivers, each takes in what the
    others wrote before it writes.
    """

    def __init__(self, folder: Path, turn: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Open the records of the study in ``folder``, which may have none yet.

        ``turn`` begins with what is stored in ``folder``, and ends with what is there stored, while no other driver does so.
        """
        folder = folder / "records"
        self._turn = turn
        self._epochs = _Table(folder, "epochs", EpochRecord, "identity", "stage", "epoch")
        self._probes = _Table(folder, "probes", ProbeRecord, "identity", "stage", "epoch", "probe", "name")
        self._evaluations = _Table(folder, "evaluations", EvaluationRecord, "identity", "split", "class_name")
        self._trials = _Table(folder, "trials", TrialRecord, "identity")
        self._runs = _Table(folder, "runs", RunRecord, "run")
        self._by_trial: dict[str, dict[tuple[str, int], EpochRecord]] = {}
        for row in self._epochs.rows.values():
            self._by_trial.setdefault(row.identity, {})[row.stage, row.epoch] = row
        self.trials: Mapping[str, TrialRecord] = self._trials.rows
        self.epochs: Mapping[tuple[str, str, int], EpochRecord] = self._epochs.rows
        self.probes: Mapping[tuple[str, str, int, str, str], ProbeRecord] = self._probes.rows
        self.evaluations: Mapping[tuple[str, str, str], EvaluationRecord] = self._evaluations.rows
        self.runs: Mapping[int, RunRecord] = self._runs.rows

    def refresh(self) -> None:
        """See what other drivers have recorded."""
        with self._merged():
            pass

    def begin_run(self, provenance: Provenance) -> RunRecord:
        """The row of a run that begins now, written: one that is killed is a run too."""
        with self._merged():
            known = dataclasses.asdict(provenance) | {"versions": json.dumps(dict(provenance.versions))}
            row = RunRecord(run=max(self.runs, default=0) + 1, started=utc_now(), **known)
            self._runs.add(row)
            self._runs.write()
        return row

    def add_run(self, row: RunRecord) -> None:
        """Keep a run's row, as it is by now, and write it."""
        with self._merged():
            self._runs.add(row)
            self._runs.write()

    def add_epoch(self, row: EpochRecord) -> None:
        """Keep an epoch's row until the next ``write``."""
        self._epochs.add(row)
        self._by_trial.setdefault(row.identity, {})[row.stage, row.epoch] = row

    def add_probe(self, row: ProbeRecord) -> None:
        """Keep a probe's row until the next ``write``."""
        self._probes.add(row)

    def add_evaluation(self, row: EvaluationRecord) -> None:
        """Keep a row of a trial's evaluation until the next ``write``."""
        self._evaluations.add(row)

    def epochs_of(self, identity: str) -> list[EpochRecord]:
        """The epochs of one trial, in the order in which they were reported."""
        return list(self._by_trial.get(identity, {}).values())

    def add_trial(self, row: TrialRecord) -> None:
        """Keep a trial's row and write everything."""
        with self._merged():
            self._trials.add(row)
            self._write()

    def write(self) -> None:
        """Replace the files, those of epochs first: a trial that is recorded has its epochs.

        Raises:
            OSError: where they cannot be written; those on disk stay whole.
        """
        with self._merged():
            self._write()

    @contextmanager
    def _merged(self) -> Iterator[None]:
        with self._turn():
            self._trials.merge(is_newer=True)
            self._runs.merge(is_newer=True)
            self._epochs.merge(is_newer=False)  # those of running trials are newer in memory
            self._probes.merge(is_newer=False)
            self._evaluations.merge(is_newer=False)
            yield

    def _write(self) -> None:
        self._epochs.write()
        for table in (self._probes, self._evaluations):
            if table.rows:
                table.write()
        self._trials.write()


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """The rows of a table, none where there is no file.

    Raises:
        StorageError: for a file that is damaged, or of another emoreg.
    """
    if not path.exists():
        return []
    table = read_table(path, str(path))
    check_columns(table, row_type, str(path))
    return [row_type(**values) for values in table.to_pylist()]


def check_columns(table: pa.Table, row_type: type[Any], name: str) -> None:
    """Refuse a table whose columns do not make rows of ``row_type``; ``name`` is for messages.

    Raises:
        StorageError: where it has others, or lacks one that has no default.
    """
    fields = dataclasses.fields(row_type)
    unknown = {*table.column_names} - {field.name for field in fields}
    needed = {field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING}
    missing = needed - {*table.column_names}
    if unknown or missing:
        found = [f"{', '.join(sorted(names))} {what}" for names, what in ((unknown, "more"), (missing, "less")) if names]
        raise StorageError(
            f"Read {name} with the emoreg that wrote it: records must have the columns that this emoreg knows, but these have "
            f"{' and '.join(found)}"
        )


def read_table(source: Path | pa.NativeFile, name: str, columns: list[str] | None = None) -> pa.Table:
    """A table of the records, or those of ``columns`` that its emoreg wrote; ``name`` is for messages.

    Raises:
        StorageError: for a file that is damaged, or of another emoreg.
    """
    try:
        # Opened once: `pq.read_table` opens a path twice, and a driver may replace the file in between.
        with pq.ParquetFile(source, page_checksum_verification=True) as stored:
            version = (stored.schema_arrow.metadata or {}).get(b"emoreg.schema_version", b"").decode()
            if version != str(SCHEMA_VERSION):
                raise StorageError(
                    f"Read {name} with the emoreg that wrote it, or choose another storage: records must have schema version "
                    f"{SCHEMA_VERSION}, but these have {version or 'none'}"
                )
            table = stored.read(columns=columns)
            _check(table, columns)
            return table
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StorageError(
            f"Move {name} away and run the study again (what it has kept is not paid for twice): records must be "
            f"Parquet, as emoreg wrote it, but it cannot be read ({error})"
        ) from error


def _check(table: pa.Table, columns: list[str] | None) -> None:
    """Raise ValueError for a table that is not as it was written."""
    if _DIGESTS not in table.schema.metadata:
        raise ValueError("it has no digests: an earlier emoreg wrote it, or another program")
    digests: dict[str, str] = json.loads(table.schema.metadata[_DIGESTS])
    for column in digests if columns is None else {*columns} & {*digests, *table.column_names}:
        if column not in table.column_names or _digest(table[column]) != digests.get(column):
            raise ValueError(f"its column {column!r} does not match its digest")


def _digest(column: pa.ChunkedArray) -> str:
    """What tells a column's type, length, nulls and values from others."""
    array = column.combine_chunks()
    digest = xxhash.xxh3_64(f"{array.type} {len(array)}".encode())
    if array.null_count:
        parts = [array.is_null().cast(pa.int8()), *_of_fixed_width(array.drop_null())]
    else:
        digest.update(bytes(len(array)))  # of each value that it is not null
        parts = _of_fixed_width(array)
    for part in parts:
        if len(part):
            width = part.type.bit_width // 8
            digest.update(memoryview(part.buffers()[1])[part.offset * width : (part.offset + len(part)) * width])
    return str(digest.hexdigest())


def _of_fixed_width(values: pa.Array) -> list[pa.Array]:
    """Arrays of whole bytes that together say what ``values``, without nulls, are."""
    if pa.types.is_boolean(values.type):
        return [values.cast(pa.int8())]
    if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return [values]
    lengths = pc.binary_length(values)
    if not len(values):
        return [lengths]
    _, starts, data = values.buffers()
    first, end = (memoryview(starts).cast("i")[values.offset + place] for place in (0, len(values)))
    return [lengths, pa.Array.from_buffers(pa.uint8(), end - first, [None, data.slice(first, end - first)])]


def write_table(path: Path, table: pa.Table) -> None:
    """Put a table of the records in the place of the former one, durably, with the digests of its columns.

    Raises:
        OSError: where it cannot be written; the former one stays whole.
    """
    digests = json.dumps({name: _digest(table[name]) for name in table.column_names})
    with replacing(path) as stream:
        pq.write_table(
            table.replace_schema_metadata({**(table.schema.metadata or {}), _DIGESTS: digests}),
            stream,
            write_page_checksum=True,
        )


def _write(path: Path, row_type: type[Row], rows: list[Row]) -> None:
    columns = schema(row_type)
    values = zip(*map(attrgetter(*columns.names), rows), strict=True) if rows else ((),) * len(columns)
    table = pa.Table.from_arrays(
        [pa.array(list(column), kind) for column, kind in zip(values, columns.types, strict=True)], schema=columns
    )
    write_table(path, table)
