"""What trials and epochs did, as typed rows in Parquet: the product's only truth about results.

``records/trials.parquet`` has one row a trial, ``epochs.parquet`` one row an epoch of a stage, ``probes.parquet`` one row a
number that a probe measured, ``runs.parquet`` one row a time that the study was run. The schemas are the dataclasses below:
column names are the fields, in order; each column's meaning is its Arrow field metadata ``doc``, and the schema's metadata
holds ``emoreg.schema_version``. The files are replaced whole and atomically: a reader never sees half.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from emoreg.config import Value
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import StorageError
from emoreg.results.outcome import EndReason, OomState, Outcome, PretrainingCost, Status
from emoreg.storage.files import replacing

SCHEMA_VERSION = 1
"""Version of the rows' schemas. Records of another version are refused."""

Stage = Literal["pretraining", "regulation"]
Role = Literal["search", "control", "trial", "confirm"]


def _column(doc: str, **kwargs: Any) -> Any:
    return field(metadata={"doc": doc}, **kwargs)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One pass over the data of one stage of one trial."""

    identity: str = _column("trial identity")
    stage: Stage = _column("pretraining or regulation")
    epoch: int = _column("epochs of the stage completed, from 1")
    step: int = _column("optimizer updates of the stage completed")
    train_loss: float = _column("mean training loss over the epoch, augmented images")
    train_accuracy: float | None = _column("training accuracy over the epoch, in [0, 1]; null for regression and mixed labels")
    val_loss: float | None = _column("loss on the validation split; null where there is none")
    val_accuracy: float | None = _column("accuracy on the validation split, in [0, 1]; null where there is none")
    learning_rate: float = _column("learning rate of the epoch's last step")
    images_per_second: float = _column("training images a second")
    seconds: float = _column("wall time of the epoch, validation included, in seconds")
    measured_balance: float | None = _column("mean balance b on the validation split; null in pretraining")
    measured_balance_std: float | None = _column("standard deviation of b over validation images; 0 unless kind=dynamic")
    gpu_utilisation: float | None = _column(
        "share of the second before the epoch's end in which the GPU computed (NVML), in [0, 1]; null on a CPU", default=None
    )
    metrics: str = _column("JSON object of registered metrics on the validation split, by val_NAME", default="{}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecord:
    """One number that a probe measured after an epoch."""

    identity: str = _column("trial identity")
    stage: Stage = _column("pretraining or regulation")
    epoch: int = _column("epochs of the stage completed, from 1")
    probe: str = _column("registered name of the probe")
    name: str = _column("what the probe calls the number")
    value: float = _column("the number")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial that ended, whichever way."""

    identity: str = _column("hash of all that decides the trial's numbers, seed included")
    role: Role = _column(
        "search: proposed by the sampler; control: beside it; trial: run by `emoreg trial`; confirm: on the test split too"
    )
    number: int | None = _column("Optuna's trial number; null outside the search")
    control: str = _column("regulated for regulation itself, else the control's name")
    status: Status = _column("finished, pruned (stopped by the scheduler, or diverged) or failed")
    end_reason: str = _column("completed, stopped_by_scheduler, diverged, infrastructure or code_error")
    message: str | None = _column("why it was pruned or failed, in words; null when finished")
    seed: int = _column("seed of the trial")
    backbone: str = _column("backbone of both encoders")
    stimuli: str = _column("stimulus set that was pre-trained on")
    task: str = _column("task set")
    form: str = _column("form of regulation")
    kind: str = _column("kind of balance")
    balance: float = _column("balance b as configured")
    pretraining_epochs: int = _column("pre-training length in epochs")
    params: str = _column("JSON object of the sampled values by path; {} outside the search")
    config: str = _column("JSON of the whole trial configuration as run, with its control applied")
    val_accuracy: float | None = _column("validation accuracy of the last regulation epoch run, in [0, 1]")
    val_loss: float | None = _column("validation loss of the last regulation epoch run")
    measured_balance: float | None = _column("mean balance b on the validation split at the end")
    test_accuracy: float | None = _column("test accuracy in [0, 1]; null unless a test evaluation was asked for")
    metrics: str = _column("JSON object of registered metrics at the end, by val_NAME and test_NAME", default="{}")
    regulation_epochs: int = _column("regulation epochs run")
    num_parameters: int | None = _column("parameters of the regulated network")
    pretraining_seconds: float = _column("seconds spent on pre-training by this trial (0 when the experience was there)")
    experience_seconds: float | None = _column(
        "seconds that its experience cost, whoever paid; null where it did not get it", default=None
    )
    regulation_seconds: float = _column("seconds spent on regulation, over all its attempts")
    waiting_seconds: float = _column(
        "seconds that its last attempt waited for a pre-training which another trial was running", default=0.0
    )
    device_seconds: float = _column("what it costs alone: experience (or pre-training, where null) + regulation, in seconds")
    micro_batch_size: int | None = _column(
        "images in a forward pass where memory was too small for a whole batch; else null", default=None
    )
    recomputed: bool = _column(
        "activations were computed again in the backward pass because memory was too small to keep them", default=False
    )
    attempts: int = _column("times that it was begun or taken up again in its last run", default=1)
    log_tail: str | None = _column("last lines of its log where it failed; null otherwise", default=None)
    device: str = _column("name of the device")
    started: str = _column("start of the last attempt, ISO 8601 UTC")
    ended: str = _column("end, ISO 8601 UTC")

    @classmethod
    def of(
        cls,
        trial: ResolvedTrial,
        outcome: Outcome,
        *,
        role: Role,
        number: int | None,
        params: Mapping[str, Value],
        device: str,
        started: str,
        attempts: int = 1,
        log_tail: str | None = None,
    ) -> TrialRecord:
        """The row of a trial that ended now."""
        config, pretraining = trial.config, outcome.pretraining
        return cls(
            identity=trial.identity,
            role=role,
            number=number,
            control=config.control,
            status=outcome.status,
            end_reason=outcome.end.value,
            message=outcome.message,
            seed=config.seed,
            backbone=config.backbone,
            stimuli=(trial.images_of_pretraining or config.stimuli).name,
            task=config.task.name,
            form=config.regulation.form,
            kind=config.regulation.kind,
            balance=config.regulation.balance,
            pretraining_epochs=config.pretraining.epochs,
            params=json.dumps(dict(params)),
            config=json.dumps(dataclasses.asdict(config)),
            val_accuracy=outcome.val_accuracy,
            val_loss=outcome.val_loss,
            measured_balance=outcome.measured_balance,
            test_accuracy=outcome.test_accuracy,
            metrics=json.dumps(dict(outcome.metrics)),
            regulation_epochs=outcome.regulation_epochs,
            num_parameters=outcome.num_parameters,
            pretraining_seconds=pretraining.paid_seconds,
            experience_seconds=pretraining.experience_seconds,
            regulation_seconds=outcome.regulation_seconds,
            waiting_seconds=pretraining.waiting_seconds,
            device_seconds=outcome.device_seconds,
            micro_batch_size=outcome.oom.micro_batch_size,
            recomputed=outcome.oom.recomputed,
            attempts=attempts,
            log_tail=log_tail,
            device=device,
            started=started,
            ended=utc_now(),
        )

    @property
    def outcome(self) -> Outcome:
        """The outcome that the row was made of; where the trial diverged is in its message alone."""
        return Outcome(
            end=EndReason(self.end_reason),
            message=self.message,
            val_accuracy=self.val_accuracy,
            val_loss=self.val_loss,
            measured_balance=self.measured_balance,
            test_accuracy=self.test_accuracy,
            metrics=json.loads(self.metrics),
            regulation_epochs=self.regulation_epochs,
            regulation_seconds=self.regulation_seconds,
            num_parameters=self.num_parameters,
            pretraining=PretrainingCost(
                paid_seconds=self.pretraining_seconds,
                experience_seconds=self.experience_seconds,
                waiting_seconds=self.waiting_seconds,
            ),
            oom=OomState(micro_batch_size=self.micro_batch_size, recomputed=self.recomputed),
        )

    @property
    def sampled(self) -> dict[str, Value]:
        """The sampled values by path."""
        params: dict[str, Value] = json.loads(self.params)
        return params


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One time that the study was run: a study that was killed or told to stop has several."""

    run: int = _column("runs of the study, from 1")
    study: str = _column("name of the study")
    storage: str = _column("folder or URI that holds the study, without passwords")
    started: str = _column("start, ISO 8601 UTC")
    ended: str | None = _column("end, ISO 8601 UTC; null while it runs, and for ever if it was killed", default=None)
    ending: str | None = _column(
        "completed (every trial ended), interrupted or aborted (faults in code); null without an end", default=None
    )
    slots: int = _column("trials that could run at once", default=0)
    num_trials: int = _column("trials that ended in this run", default=0)
    slot_seconds: float = _column("seconds of all slots that ran a trial, or had one waiting for pre-training", default=0.0)
    waiting_slot_seconds: float = _column(
        "of these, spent waiting for pre-training: by empty slots, and inside of trials", default=0.0
    )
    paid_seconds: float = _column("pre-training that this run's trials paid for, in seconds of the device", default=0.0)
    reused_seconds: float = _column("pre-training that they took from the store instead", default=0.0)
    command: str | None = _column("what was typed, without passwords; null where it was not a command", default=None)
    versions: str = _column("JSON object: versions of emoreg, Python and the packages that make the numbers", default="{}")
    git_commit: str | None = _column(
        "commit of emoreg's checkout, with + where it was changed; null outside of one", default=None
    )
    host: str | None = _column("machine of the driver, and its platform", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a run's numbers come from.

    Attributes:
        study: name of the study.
        storage: that holds it, without passwords.
        command: what was typed, without passwords.
        versions: by package, with ``python`` and ``emoreg``.
        git_commit: of emoreg's checkout, with ``+`` where it was changed.
        host: the driver's machine, and its platform.
    """

    study: str
    storage: str
    command: str | None
    versions: Mapping[str, str]
    git_commit: str | None
    host: str


Row = TypeVar("Row", EpochRecord, ProbeRecord, TrialRecord, RunRecord)
AnyRow = type[EpochRecord] | type[ProbeRecord] | type[TrialRecord] | type[RunRecord]

_ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema(row_type: AnyRow) -> pa.Schema:
    """The Arrow schema of a row type: names, types, nullability and the meaning of each column."""
    hints = get_type_hints(row_type)
    columns = []
    for item in dataclasses.fields(row_type):
        hint = hints[item.name]
        nullable = get_origin(hint) in (types.UnionType, typing.Union)
        base = next(option for option in get_args(hint) if option is not type(None)) if nullable else hint
        arrow = _ARROW_TYPES[str if get_origin(base) is Literal else base]
        columns.append(pa.field(item.name, arrow, nullable=nullable, metadata={"doc": item.metadata["doc"]}))
    return pa.schema(columns, metadata={"emoreg.schema_version": str(SCHEMA_VERSION)})


def unfinished_outcome(
    epochs: Sequence[EpochRecord], end: EndReason, message: str, *, pretraining: PretrainingCost | None = None
) -> Outcome:
    """The outcome of a trial that ended before it could tell its own, from the epochs that it came to.

    Args:
        epochs: of the trial, in order.
        end: why it ended.
        message: the same in words.
        pretraining: what its experience took; None where it did not get it.
    """
    regulation = [row for row in epochs if row.stage == "regulation"]
    paid_seconds = sum(row.seconds for row in epochs if row.stage == "pretraining")
    last = regulation[-1] if regulation else None
    return Outcome(
        end=end,
        message=message,
        val_accuracy=last and last.val_accuracy,
        val_loss=last and last.val_loss,
        measured_balance=last and last.measured_balance,
        metrics=json.loads(last.metrics) if last else {},
        regulation_epochs=len(regulation),
        regulation_seconds=sum(row.seconds for row in regulation),
        pretraining=dataclasses.replace(pretraining or PretrainingCost(), paid_seconds=paid_seconds),
    )


def utc_now() -> str:
    """The time as the records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


Key = str | int | tuple[str | int, ...]


class _Table(Generic[Row]):
    """One table in memory and its file, which another driver of the study may replace."""

    def __init__(self, path: Path, row_type: type[Row], key: Callable[[Row], Any]) -> None:
        self._path = path
        self._row_type = row_type
        self._key = key
        self._stamp: tuple[int, int, int] | None = None
        self.rows: dict[Any, Row] = {}
        self.merge(is_newer=True)

    def add(self, row: Row) -> None:
        self.rows[self._key(row)] = row

    def merge(self, *, is_newer: bool) -> None:
        """Take in the rows of the file, if it was replaced by somebody else; they count more than those here if newer."""
        if self._now() == self._stamp:
            return
        for row in read_rows(self._path, self._row_type):
            if is_newer:
                self.rows[self._key(row)] = row
            else:
                self.rows.setdefault(self._key(row), row)
        self._stamp = self._now()

    def write(self) -> None:
        _write(self._path, self._row_type, list(self.rows.values()))
        self._stamp = self._now()

    def _now(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class Records:
    """The tables of one study, in memory.

    Rows are keyed, trials by identity and epochs by (identity, stage, epoch); a later row replaces an earlier one, so that a
    trial taken up again from its checkpoint never doubles an epoch. If a study has several drivers, each takes in what the
    others wrote before it writes.

    Attributes:
        trials: by identity.
        epochs: by identity, stage and number.
        probes: by identity, stage, epoch, probe and name.
        runs: by number.
    """

    def __init__(self, folder: Path, turn: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Open the records of the study in ``folder``, which may have none yet.

        Args:
            folder: the study's.
            turn: begins with what is stored in ``folder``, and ends with what is in ``folder`` stored, while no other driver
                does the same.
        """
        folder = folder / "records"
        self._turn = turn
        self._epochs = _Table(folder / "epochs.parquet", EpochRecord, lambda row: (row.identity, row.stage, row.epoch))
        self._probes = _Table(
            folder / "probes.parquet", ProbeRecord, lambda row: (row.identity, row.stage, row.epoch, row.probe, row.name)
        )
        self._trials = _Table(folder / "trials.parquet", TrialRecord, lambda row: row.identity)
        self._runs = _Table(folder / "runs.parquet", RunRecord, lambda row: row.run)
        self._by_trial: dict[str, dict[tuple[str, int], EpochRecord]] = {}
        for row in self._epochs.rows.values():
            self._by_trial.setdefault(row.identity, {})[row.stage, row.epoch] = row
        self.trials: Mapping[str, TrialRecord] = self._trials.rows
        self.epochs: Mapping[tuple[str, str, int], EpochRecord] = self._epochs.rows
        self.probes: Mapping[tuple[str, str, int, str, str], ProbeRecord] = self._probes.rows
        self.runs: Mapping[int, RunRecord] = self._runs.rows

    def refresh(self) -> None:
        """See what other drivers have recorded."""
        with self._merged():
            pass

    def begin_run(self, provenance: Provenance) -> RunRecord:
        """The row of a run that begins now, written: one that is killed is a run too."""
        with self._merged():
            row = RunRecord(
                run=max(self.runs, default=0) + 1,
                study=provenance.study,
                storage=provenance.storage,
                started=utc_now(),
                command=provenance.command,
                versions=json.dumps(dict(provenance.versions)),
                git_commit=provenance.git_commit,
                host=provenance.host,
            )
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
            yield

    def _write(self) -> None:
        self._epochs.write()
        if self._probes.rows:
            self._probes.write()
        self._trials.write()


def read_rows(path: Path, row_type: type[Row], *, name: str = "") -> list[Row]:
    """The rows of a table, none where there is no file.

    Args:
        path: of the table.
        row_type: of its rows.
        name: what a message calls it, where that is not its path.

    Raises:
        StorageError: for a file that is damaged, or of another emoreg.
    """
    return [row_type(**values) for values in read_table(path, name or str(path)).to_pylist()] if path.exists() else []


def read_table(source: Path | pa.NativeFile, name: str, columns: list[str] | None = None) -> pa.Table:
    """A table of the records.

    Args:
        source: where it is.
        name: what a message calls it.
        columns: those wanted; None for all.

    Raises:
        StorageError: for a file that is damaged, or of another emoreg.
    """
    try:
        # Opened once: `pq.read_table` opens a path twice, and a driver may replace the file in between.
        with pq.ParquetFile(source, page_checksum_verification=True) as stored:
            version = schema_version(stored.schema_arrow)
            if version != SCHEMA_VERSION:
                raise StorageError(
                    f"Read {name} with the emoreg that wrote it, or choose another storage: records must have schema version "
                    f"{SCHEMA_VERSION}, but these have {version or 'none'}"
                )
            return stored.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"Move {name} away and run the study again (trials that have a checkpoint are not paid for twice): records must be "
            f"Parquet, but it cannot be read ({error})"
        ) from error


def schema_version(stored: pa.Schema) -> int | None:
    """Which version of the schemas a table was written with; None for a table that is not emoreg's."""
    version = (stored.metadata or {}).get(b"emoreg.schema_version", b"").decode()
    return int(version) if version.isdigit() else None


def _write(path: Path, row_type: AnyRow, rows: list[Any]) -> None:
    columns = schema(row_type)
    values = zip(*map(attrgetter(*columns.names), rows), strict=True) if rows else ((),) * len(columns)
    table = pa.Table.from_arrays(
        [pa.array(list(column), kind) for column, kind in zip(values, columns.types, strict=True)], schema=columns
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        pq.write_table(table, stream, write_page_checksum=True)
