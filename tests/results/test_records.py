from __future__ import annotations

import dataclasses
import json
import os
import random
import threading
from pathlib import Path
from typing import Any, get_type_hints

import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emoreg.config import ImageSetConfig, TrialConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.errors import StorageError
from emoreg.results.outcome import EndReason, OomState, Outcome, PretrainingCost
from emoreg.results.records import SCHEMA_VERSION, EpochRecord, Provenance, TrialRecord, schema, unfinished_outcome
from emoreg.results.tables import Records, read_rows, read_table, write_table
from emoreg.results.written import stored_rows
from emoreg.storage.files import Files
from tests.helpers.studies import ended

CONFIG = TrialConfig(control="plain", neutral=ImageSetConfig(name="openmoji-objects"))
TRIAL = resolve_trial(CONFIG)
PROVENANCE = Provenance(
    study="mine", storage="runs", command="emoreg run x", versions={"torch": "2.13.0"}, git_commit=None, host="here (Linux)"
)


def epoch_row(epoch: int = 1, stage: Any = "regulation", **values: Any) -> EpochRecord:
    row = EpochRecord(
        identity="abc",
        stage=stage,
        epoch=epoch,
        step=10 * epoch,
        train_loss=1.5,
        train_accuracy=None,
        val_loss=1.25,
        val_accuracy=0.5,
        learning_rate=0.001,
        images_per_second=1000.0,
        seconds=2.0,
        measured_balance=0.5,
        measured_balance_std=None,
    )
    return dataclasses.replace(row, **values)


EPOCHS = [epoch_row(1), epoch_row(2, seconds=3.0), epoch_row(1, "pretraining", seconds=5.0)]


def trial_row(identity: str = "abc", outcome: Outcome | None = None, **values: Any) -> TrialRecord:
    row = TrialRecord.of(
        TRIAL,
        outcome or Outcome(end=EndReason.COMPLETED, val_accuracy=0.5),
        role="search",
        number=3,
        params={"regulation.balance": 0.25},
        device="CPU",
        started="2026-01-01T00:00:00.000+00:00",
    )
    return dataclasses.replace(row, identity=identity, **values)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    records = Records(tmp_path)
    for row in (epoch_row(1, "pretraining", measured_balance=None, val_loss=None), epoch_row(1), epoch_row(2, train_loss=0.5)):
        records.add_epoch(row)
    records.add_trial(trial_row())
    records.add_trial(trial_row("déf", status="pruned", message="the loss is not finite", number=None))
    return tmp_path


def test_rows_come_back_as_they_were(written: Path) -> None:
    records = Records(written)
    assert list(records.trials) == ["abc", "déf"]
    assert records.trials["déf"].message == "the loss is not finite"
    assert records.trials["déf"].number is None
    assert list(records.epochs) == [("abc", "pretraining", 1), ("abc", "regulation", 1), ("abc", "regulation", 2)]
    assert records.epochs["abc", "regulation", 2] == epoch_row(2, train_loss=0.5)


def _rows(row_type: Any) -> Any:
    return st.builds(row_type, **{f.name: _values(get_type_hints(row_type)[f.name]) for f in dataclasses.fields(row_type)})


def _values(hint: Any) -> Any:
    return st.from_type(hint).filter(lambda value: not isinstance(value, int) or abs(value) < 2**63).filter(_encodable)


def _encodable(value: Any) -> bool:
    return not isinstance(value, str) or value.isascii() or value.encode("utf-8", "ignore").decode() == value


def _same(first: Any, second: Any) -> bool:
    """Equal, where NaN equals NaN."""
    return repr(first) == repr(second)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_rows(EpochRecord), max_size=4), st.lists(_rows(TrialRecord), max_size=3))
def test_any_row_survives(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[EpochRecord], trials: list[TrialRecord]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    records = Records(folder)
    for epoch in epochs:
        records.add_epoch(epoch)
    for trial in trials:
        records.add_trial(trial)
    records.write()
    again = Records(folder)
    assert _same(again.epochs, records.epochs)
    assert _same(again.trials, records.trials)


def test_a_later_row_replaces_an_earlier_one(written: Path) -> None:
    records = Records(written)
    records.add_epoch(epoch_row(2, train_loss=0.25))
    records.add_trial(trial_row(status="failed", message="again"))
    again = Records(written)
    assert again.epochs["abc", "regulation", 2].train_loss == 0.25
    assert [row.status for row in again.trials.values()] == ["failed", "pruned"]
    assert pq.read_metadata(written / "records" / "trials.parquet").num_rows == 2
    assert pq.read_metadata(written / "records" / "epochs.parquet").num_rows == 3


def _ask(query: str) -> list[tuple[Any, ...]]:
    relation = duckdb.sql(query)
    assert relation is not None
    return relation.fetchall()


def test_pandas_duckdb_and_polars_read_the_same(written: Path) -> None:
    path = str(written / "records" / "epochs.parquet")
    expected = [1.5, 1.5, 0.5]
    assert pd.read_parquet(path)["train_loss"].tolist() == expected
    assert pl.read_parquet(path)["train_loss"].to_list() == expected
    assert [loss for (loss,) in _ask(f"select train_loss from '{path}'")] == expected
    assert np.isnan(pd.read_parquet(path)["measured_balance"].tolist()[0])
    assert pl.read_parquet(path)["measured_balance"].to_list() == [None, 0.5, 0.5]
    assert _ask(f"select count(*) from '{path}' where measured_balance is null") == [(1,)]
    trials = str(written / "records" / "trials.parquet")
    joined = f"select t.status, count(*) from '{trials}' t join '{path}' e using (identity) group by all"
    assert _ask(joined) == [("finished", 3)]
    assert pd.read_parquet(trials)["number"].tolist()[0] == 3
    (params,) = pl.read_parquet(trials).filter(pl.col("status") == "finished")["params"]
    assert json.loads(params) == {"regulation.balance": 0.25}


def test_empty_records_have_their_schema(tmp_path: Path) -> None:
    Records(tmp_path).write()
    for name, row_type in (("epochs", EpochRecord), ("trials", TrialRecord)):
        path = tmp_path / "records" / f"{name}.parquet"
        found, meant = pq.read_schema(path), schema(row_type)
        assert found.remove_metadata().equals(meant.remove_metadata(), check_metadata=True)
        assert found.metadata.items() >= meant.metadata.items()
        assert len(pd.read_parquet(path)) == 0


@pytest.mark.parametrize("row_type", [EpochRecord, TrialRecord])
def test_every_column_says_what_it_means(row_type: Any, written: Path) -> None:
    name = "epochs" if row_type is EpochRecord else "trials"
    stored = pq.read_schema(written / "records" / f"{name}.parquet")
    assert stored.names == [field.name for field in dataclasses.fields(row_type)]
    assert stored.metadata[b"emoreg.schema_version"] == str(SCHEMA_VERSION).encode()
    hints = get_type_hints(row_type)
    for column in stored:
        assert len(column.metadata[b"doc"]) > 4, column.name
        assert column.nullable == (type(None) in getattr(hints[column.name], "__args__", ())), column.name


@pytest.mark.parametrize("broken", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_records(written: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    records = Records(written)
    where = {"write": (pq, "write_table"), "sync": (os, "fsync"), "rename": (os, "replace")}
    monkeypatch.setattr(*where[broken], full)
    with pytest.raises(OSError, match="No space"):
        records.add_trial(trial_row("new"))
    monkeypatch.undo()
    assert list(Records(written).trials) == ["abc", "déf"]
    assert sorted(path.name for path in (written / "records").iterdir()) == ["epochs.parquet", "trials.parquet"]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_torn_records_are_said_and_not_overwritten(written: Path, kept: float) -> None:
    path = written / "records" / "trials.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(StorageError, match=r"Move .*trials\.parquet away.*must be Parquet"):
        Records(written)
    assert path.exists()


@pytest.mark.parametrize("offset", [10, 200, 1000, 2000, -20])
def test_damaged_records_are_said(written: Path, offset: int) -> None:
    path = written / "records" / "trials.parquet"
    content = bytearray(path.read_bytes())
    for at in range(offset, offset + 8):
        content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"must be Parquet|must have schema"):
        Records(written)


@pytest.mark.parametrize("table", ["trials", "epochs"])
def test_no_flipped_bit_is_believed(written: Path, table: str) -> None:
    """Most of the flips are in the footer, which Parquet's checksums leave out; some of its bytes say nothing of the rows."""
    path = written / "records" / f"{table}.parquet"
    whole, row_type = path.read_bytes(), TrialRecord if table == "trials" else EpochRecord
    rows = read_rows(path, row_type)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    chance = random.Random(0)
    positions = [*range(footer, len(whole), 127), *(chance.randrange(footer) for _ in range(50))]
    refused = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        for columns in (None, ["identity"]):
            try:
                found = read_table(path, "it", columns)
            except StorageError:
                refused += 1
            else:
                assert found["identity"].to_pylist() == [row.identity for row in rows]
                assert columns or [row_type(**row) for row in found.to_pylist()] == rows
    assert refused > len(positions) / 2


def test_another_version_is_refused(written: Path) -> None:
    path = written / "records" / "trials.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"emoreg.schema_version": "99"}), path)
    with pytest.raises(StorageError, match=r"must have schema version 1, but these have 99"):
        Records(written)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(StorageError, match="have none"):
        Records(written)


def test_columns_of_another_emoreg_are_refused(written: Path) -> None:
    path = written / "records" / "trials.parquet"
    table = pq.read_table(path)
    with_more = table.append_column("horoscope", [["lion"] * len(table)])
    for other, told in ((with_more, "horoscope more"), (table.drop_columns(["seed"]), "seed less")):
        write_table(path, other)
        with pytest.raises(StorageError, match=rf"^Read .*trials\.parquet with the emoreg that wrote it: .* {told}"):
            Records(written)
    with pytest.raises(StorageError, match=r"^Read records/trials\.parquet of .* with the emoreg that wrote it: .* seed less"):
        stored_rows(Files(str(written)), "trials", TrialRecord)


def test_the_outcome_of_a_trial_that_could_not_tell_its_own_comes_from_its_epochs() -> None:
    outcome = unfinished_outcome(EPOCHS, EndReason.STOPPED_BY_SCHEDULER, "stopped")
    row = trial_row(outcome=outcome)
    assert (row.status, row.end_reason, row.message) == ("pruned", "stopped_by_scheduler", "stopped")
    assert (row.val_accuracy, row.val_loss, row.measured_balance, row.num_parameters) == (0.5, 1.25, 0.5, None)
    assert (row.regulation_epochs, row.pretraining_seconds, row.regulation_seconds, row.device_seconds) == (2, 5.0, 5.0, 10.0)
    assert (row.waiting_seconds, row.micro_batch_size, row.recomputed) == (0.0, None, False)
    assert (row.control, row.balance, row.pretraining_epochs) == ("plain", 0.0, 0)  # as applied
    assert json.loads(row.config)["regulation"]["balance"] == 0.0
    for kind, balance in (("random", None), ("random_learnable", None), ("learnable", 0.5)):
        config = replace_paths(TrialConfig(), {"regulation.kind": kind})
        assert ended(config).balance == balance, "random kinds have no balance setting"
    ready = PretrainingCost(experience_seconds=9.0, waiting_seconds=2.0)
    outcome = unfinished_outcome(EPOCHS, EndReason.INFRASTRUCTURE, "its worker died", pretraining=ready)
    assert outcome.pretraining == PretrainingCost(paid_seconds=5.0, experience_seconds=9.0, waiting_seconds=2.0)
    assert outcome.device_seconds == 14.0


OUTCOME = Outcome(
    end=EndReason.COMPLETED,
    val_accuracy=0.75,
    val_loss=0.5,
    measured_balance=0.25,
    test_accuracy=0.7,
    metrics={"val_f1": 0.5, "test_f1": 0.25},
    regulation_epochs=3,
    regulation_seconds=2.0,
    num_parameters=10,
    pretraining=PretrainingCost(paid_seconds=1.0, experience_seconds=4.0, waiting_seconds=3.0),
    oom=OomState(micro_batch_size=16, recomputed=True),
)


def test_a_row_is_made_of_an_outcome_and_gives_it_back() -> None:
    neutral = resolve_trial(dataclasses.replace(CONFIG, control="neutral"))
    row = TrialRecord.of(neutral, OUTCOME, role="control", number=None, params={}, device="CPU", started="2026")
    assert (row.identity, row.val_accuracy, row.test_accuracy, row.num_parameters) == (neutral.identity, 0.75, 0.7, 10)
    assert (row.device_seconds, row.stimuli, row.regulation_epochs) == (6.0, "openmoji-objects", 3)
    assert (row.waiting_seconds, row.micro_batch_size, row.recomputed) == (3.0, 16, True)
    assert json.loads(row.metrics) == {"val_f1": 0.5, "test_f1": 0.25}
    assert row.outcome == OUTCOME
    assert row.ended > row.started


def test_a_trial_that_never_began_has_no_numbers() -> None:
    row = trial_row(outcome=unfinished_outcome([], EndReason.INFRASTRUCTURE, "out of memory"))
    assert row.val_accuracy is row.val_loss is row.measured_balance is None
    assert (row.status, row.regulation_epochs, row.device_seconds) == ("failed", 0, 0)


def test_a_run_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    Records(tmp_path).begin_run(PROVENANCE)
    again = Records(tmp_path)
    assert again.begin_run(PROVENANCE).run == 2
    (first, _) = Records(tmp_path).runs.values()
    assert (first.study, first.storage, first.command, first.host) == ("mine", "runs", "emoreg run x", "here (Linux)")
    assert json.loads(first.versions) == {"torch": "2.13.0"}


def test_what_another_driver_writes_is_taken_in_before_anything_is_written(written: Path) -> None:
    mine, other = Records(written), Records(written)
    mine.add_epoch(epoch_row(2, train_loss=0.125))
    other.add_trial(trial_row("other"))
    mine.refresh()
    assert "other" in mine.trials
    mine.add_trial(trial_row("mine"))
    again = Records(written)
    assert {"other", "mine"} <= again.trials.keys()
    assert again.epochs["abc", "regulation", 2].train_loss == 0.125, "what runs here is newer here"


def test_records_are_read_while_they_are_replaced(written: Path) -> None:
    """The rows are those of one moment: of before a replacement, or of after it."""
    records = Records(written)
    few = written / "few"
    Records(few).add_trial(next(iter(records.trials.values())))
    path = written / "records" / "trials.parquet"
    versions = [path.read_bytes(), (few / "records" / "trials.parquet").read_bytes()]
    numbers = {len(records.trials), 1}
    has_ended = threading.Event()

    def replace() -> None:
        while not has_ended.is_set():
            for version in versions:
                path.with_suffix(".new").write_bytes(version)
                os.replace(path.with_suffix(".new"), path)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        seen = {len(read_rows(path, TrialRecord)) for _ in range(100)}
    finally:
        has_ended.set()
        replacing.join()
    assert seen == numbers
