"""What trials and epochs did, as typed rows in Parquet: the product's only truth about results.

``records/trials.parquet`` has one row a trial, ``records/epochs.parquet`` one row an epoch of a stage, ``records/runs.parquet``
one row a time that the study was run. The schemas are the dataclasses below: column names are the fields, in order; each
column's meaning is its Arrow field metadata ``doc``, and the schema's metadata holds ``emoreg.schema_version``. The files are
replaced whole and atomically: a reader never sees half.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from emoreg.config import TrialConfig, Value
from emoreg.errors import StorageError
from emoreg.storage.files import replacing

SCHEMA_VERSION = 3
"""Records of older versions are read: what they lack has the column's default. Newer ones are refused."""

Stage = Literal["pretraining", "regulation"]
Status = Literal["finished", "pruned", "failed"]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial that ended, whichever way."""

    identity: str = _column("hash of the resolved trial configuration, seed included")
    role: Role = _column(
        "search: proposed by the sampler; control: beside it; trial: run by `emoreg trial`; confirm: on the test split too"
    )
    number: int | None = _column("Optuna's trial number; null outside the search")
    control: str = _column("regulated for regulation itself, else the control's name")
    status: Status = _column("finished, pruned (stopped by the scheduler, or diverged) or failed")
    reason: str | None = _column("why it was pruned or failed; null when finished")
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
    regulation_epochs: int = _column("regulation epochs run")
    num_parameters: int | None = _column("parameters of the regulated network")
    pretraining_seconds: float = _column("seconds spent on pre-training by this trial (0 when the experience was there)")
    experience_seconds: float | None = _column(
        "seconds that its experience cost, whoever paid; null where it did not get it", default=None
    )
    regulation_seconds: float = _column("seconds spent on regulation, over all its attempts")
    waiting_seconds: float = _column(
        "seconds that its last attempt waited for an experience which another trial was training", default=0.0
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

    @property
    def sampled(self) -> dict[str, Value]:
        """The sampled values by path."""
        params: dict[str, Value] = json.loads(self.params)
        return params


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One time that the study was run: a study that was killed or told to stop has several."""

    run: int = _column("runs of the study, from 1")
    started: str = _column("start, ISO 8601 UTC")
    ended: str | None = _column("end, ISO 8601 UTC; null while it runs, and for ever if it was killed")
    ending: str | None = _column("whole (every trial ended), interrupted or broken (faults in code); null without an end")
    slots: int = _column("trials that could run at once")
    num_trials: int = _column("trials that ended in this run")
    slot_seconds: float = _column("seconds of all slots that ran a trial, or had one waiting for an experience")
    waiting_slot_seconds: float = _column("of these, spent waiting for an experience: by empty slots, and inside of trials")
    paid_seconds: float = _column("pre-training that this run's trials paid for, in seconds of the device")
    reused_seconds: float = _column("pre-training that they took from the store instead")
    command: str | None = _column("what was typed, without passwords; null where it was not a command", default=None)
    versions: str | None = _column(
        "JSON object: versions of emoreg, Python and the packages that make the numbers", default=None
    )
    git_commit: str | None = _column(
        "commit of emoreg's checkout, with + where it was changed; null outside of one", default=None
    )
    host: str | None = _column("machine of the driver, and its platform", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a run's numbers come from.

    Attributes:
        command: what was typed, without passwords.
        versions: by package, with ``python`` and ``emoreg``.
        git_commit: of emoreg's checkout, with ``+`` where it was changed.
        host: the driver's machine, and its platform.
    """

    command: str | None
    versions: Mapping[str, str]
    git_commit: str | None
    host: str


Row = TypeVar("Row", EpochRecord, TrialRecord, RunRecord)
AnyRow = type[EpochRecord] | type[TrialRecord] | type[RunRecord]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What a finished trial came to. Accuracies lie in [0, 1]; times are in seconds, over all its attempts."""

    identity: str
    val_accuracy: float
    val_loss: float
    measured_balance: float
    test_accuracy: float | None
    num_parameters: int
    pretraining_seconds: float
    experience_seconds: float
    regulation_seconds: float
    waiting_seconds: float
    micro_batch_size: int | None
    recomputed: bool


def trial_record(
    config: TrialConfig,
    *,
    role: Role,
    number: int | None,
    params: Mapping[str, Value],
    status: Status,
    reason: str | None,
    result: TrialResult | None,
    epochs: list[EpochRecord],
    device: str,
    started: str,
    experience_seconds: float | None = None,
    waiting_seconds: float = 0.0,
    attempts: int = 1,
    log_tail: str | None = None,
) -> TrialRecord:
    """The row of a trial that ended now, from its result or, where it has none, from the epochs that it came to.

    ``experience_seconds`` and ``waiting_seconds`` are for a trial without a result that has got its experience.
    """
    applied = config.applied()
    regulation = [row for row in epochs if row.stage == "regulation"]
    pretraining_seconds = sum(row.seconds for row in epochs if row.stage == "pretraining")
    regulation_seconds = sum(row.seconds for row in regulation)
    last = regulation[-1] if regulation else None
    if result is not None:
        pretraining_seconds, regulation_seconds = result.pretraining_seconds, result.regulation_seconds
        experience_seconds, waiting_seconds = result.experience_seconds, result.waiting_seconds
    stimuli = applied.neutral if applied.control == "neutral" and applied.neutral is not None else applied.stimuli
    return TrialRecord(
        identity=config.identity,
        role=role,
        number=number,
        control=applied.control,
        status=status,
        reason=reason,
        seed=applied.seed,
        backbone=applied.backbone,
        stimuli=stimuli.name,
        task=applied.task.name,
        form=applied.regulation.form,
        kind=applied.regulation.kind,
        balance=applied.regulation.balance,
        pretraining_epochs=applied.pretraining.epochs,
        params=json.dumps(dict(params)),
        config=json.dumps(dataclasses.asdict(applied)),
        val_accuracy=result.val_accuracy if result is not None else last.val_accuracy if last is not None else None,
        val_loss=result.val_loss if result is not None else last.val_loss if last is not None else None,
        measured_balance=result.measured_balance if result is not None else last.measured_balance if last is not None else None,
        test_accuracy=result.test_accuracy if result is not None else None,
        regulation_epochs=len(regulation),
        num_parameters=result.num_parameters if result is not None else None,
        pretraining_seconds=pretraining_seconds,
        experience_seconds=experience_seconds,
        regulation_seconds=regulation_seconds,
        device_seconds=(pretraining_seconds if experience_seconds is None else experience_seconds) + regulation_seconds,
        waiting_seconds=waiting_seconds,
        micro_batch_size=result.micro_batch_size if result is not None else None,
        recomputed=result is not None and result.recomputed,
        attempts=attempts,
        log_tail=log_tail,
        device=device,
        started=started,
        ended=utc_now(),
    )


def utc_now() -> str:
    """The time as the records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Records:
    """The three tables of one study, in memory.

    Rows are keyed, trials by identity and epochs by (identity, stage, epoch); a later row replaces an earlier one, so that a
    trial taken up again from its checkpoint never doubles an epoch. Where a study has several drivers, each reads what the
    others wrote before it writes.
    """

    def __init__(self, folder: Path, turn: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        """Open the records of the study in ``folder``, which may have none yet.

        Args:
            folder: the study's.
            turn: where there are several drivers: begins with what is stored in ``folder``, and ends with what is in
                ``folder`` stored, while no other driver does the same.
        """
        self._folder = folder / "records"
        self._shared = turn
        self.trials: dict[str, TrialRecord] = {
            row.identity: row for row in read_rows(self._folder / "trials.parquet", TrialRecord)
        }
        self.epochs: dict[tuple[str, str, int], EpochRecord] = {
            (row.identity, row.stage, row.epoch): row for row in read_rows(self._folder / "epochs.parquet", EpochRecord)
        }
        self.runs: dict[int, RunRecord] = {row.run: row for row in read_rows(self._folder / "runs.parquet", RunRecord)}

    def refresh(self) -> None:
        """See what other drivers have recorded, where there are any."""
        if self._shared is not None:
            with self._shared():
                self._merge()

    def begin_run(self, provenance: Provenance) -> RunRecord:
        """The row of a run that begins now, written: one that is killed is a run too."""
        with self._turn():
            row = RunRecord(
                run=max(self.runs, default=0) + 1,
                started=utc_now(),
                ended=None,
                ending=None,
                slots=0,
                num_trials=0,
                slot_seconds=0.0,
                waiting_slot_seconds=0.0,
                paid_seconds=0.0,
                reused_seconds=0.0,
                command=provenance.command,
                versions=json.dumps(dict(provenance.versions)),
                git_commit=provenance.git_commit,
                host=provenance.host,
            )
            self._add_run(row)
        return row

    def add_run(self, row: RunRecord) -> None:
        """Keep a run's row, as it is by now, and write it."""
        with self._turn():
            self._add_run(row)

    def add_epoch(self, row: EpochRecord) -> None:
        """Keep an epoch's row until the next ``write``."""
        self.epochs[row.identity, row.stage, row.epoch] = row

    def epochs_of(self, identity: str) -> list[EpochRecord]:
        """The epochs of one trial, in the order in which they were reported."""
        return [row for key, row in self.epochs.items() if key[0] == identity]

    def add_trial(self, row: TrialRecord) -> None:
        """Keep a trial's row and write everything."""
        with self._turn():
            self.trials[row.identity] = row
            self._write()

    def write(self) -> None:
        """Replace both files, epochs first: a trial that is recorded has its epochs.

        Raises:
            OSError: where they cannot be written; those on disk stay whole.
        """
        with self._turn():
            self._write()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with nullcontext() if self._shared is None else self._shared():
            if self._shared is not None:
                self._merge()
            yield

    def _merge(self) -> None:
        """Take in what is on disk. Epochs in memory are newer: those of running trials are not on disk yet."""
        self.trials.update({row.identity: row for row in read_rows(self._folder / "trials.parquet", TrialRecord)})
        for epoch in read_rows(self._folder / "epochs.parquet", EpochRecord):
            self.epochs.setdefault((epoch.identity, epoch.stage, epoch.epoch), epoch)
        for run in read_rows(self._folder / "runs.parquet", RunRecord):
            self.runs[run.run] = run

    def _add_run(self, row: RunRecord) -> None:
        self.runs[row.run] = row
        _write(self._folder / "runs.parquet", RunRecord, list(self.runs.values()))

    def _write(self) -> None:
        _write(self._folder / "epochs.parquet", EpochRecord, list(self.epochs.values()))
        _write(self._folder / "trials.parquet", TrialRecord, list(self.trials.values()))


def read_rows(path: Path, row_type: type[Row], *, name: str = "") -> list[Row]:
    """The rows of a table, none where there is no file.

    Args:
        path: of the table.
        row_type: of its rows.
        name: what a message calls it, where that is not its path.

    Raises:
        StorageError: for a file that is damaged, or of a newer emoreg.
    """
    return [row_type(**values) for values in read_table(path, name or str(path)).to_pylist()] if path.exists() else []


def read_table(source: Path | pa.NativeFile, name: str, columns: list[str] | None = None) -> pa.Table:
    """A table of the records.

    Args:
        source: where it is.
        name: what a message calls it.
        columns: those wanted; None for all.

    Raises:
        StorageError: for a file that is damaged, or of a newer emoreg.
    """
    try:
        # Opened once: `pq.read_table` opens a path twice, and a driver may replace the file in between.
        with pq.ParquetFile(source, page_checksum_verification=True) as stored:
            version = schema_version(stored.schema_arrow)
            if version is None or version > SCHEMA_VERSION:
                raise StorageError(
                    f"records must have schema version 1 to {SCHEMA_VERSION}, but {name} has {version or 'none'}: read it with "
                    "the emoreg that wrote it, or choose another storage"
                )
            return stored.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"records must be Parquet, but {name} cannot be read ({error}): move it away and run the study again; trials "
            "that have a checkpoint are not paid for twice"
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
