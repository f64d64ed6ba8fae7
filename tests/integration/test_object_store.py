"""A study whose storage is a real S3 endpoint: killed and run again, it leaves there what it leaves in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy, join
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.gate import Gate
from tests.integration.test_study import IMPATIENT, run, start

ONE_AT_A_TIME = ("--resources.max-concurrent", "1", "--resources.checkpoint-seconds", "0")
FEW = (*ONE_AT_A_TIME, "--num-trials", "2", "--controls", "plain")


def records(storage: str) -> Records:
    with WorkingCopy(Files(join(storage, "tiny"))) as copy:
        copy.pull("records")
        return Records(copy.folder)


def numbers(found: Records) -> dict[str, dict[str, object]]:
    return {
        identity: {
            name: getattr(row, name) for name in ("status", "role", "number", "val_accuracy", "val_loss", "measured_balance")
        }
        for identity, row in found.trials.items()
    }


@pytest.mark.slow
def test_killed_and_run_again_it_equals_a_study_in_a_folder(bucket: str, tmp_path: Path) -> None:
    run(tmp_path, *FEW)
    process = start(bucket, *FEW)
    wait_for(lambda: bool(records(bucket).trials), process)
    process.kill()
    process.communicate()
    before = records(bucket).trials
    output = run(bucket, *FEW)
    assert "secret" not in output
    after = records(bucket)
    assert {identity: after.trials[identity] for identity in before} == before, "a finished trial was run again"
    assert numbers(after) == numbers(records(str(tmp_path)))
    names = {found.name for found in Files(join(bucket, "tiny")).find()}
    for identity in after.trials:
        assert f"trials/{identity}/log.txt" in names
        events = {name.rpartition(".tfevents.")[2] for name in names if name.startswith(f"events/{identity}/")}
        assert "end" in events
        assert len(events) > 1, "the epochs' own"
    best = max((row for row in after.trials.values() if row.role == "search"), key=lambda row: row.val_accuracy or 0.0)
    assert [name for name in names if name.endswith(".ckpt")] == [f"trials/{best.identity}/trial.ckpt"], "the best alone"
    assert {"optuna.journal", "study.json", "records/runs.parquet"} <= names
    assert not [name for name in names if name.endswith((".tmp", ".lock")) or ".driver" in name]
    assert b"secret" not in Files(join(bucket, "tiny")).read("study.json").to_pybytes()


@pytest.mark.soak
@pytest.mark.slow
def test_a_storage_that_stays_away_ends_the_run_and_the_next_one_goes_on(bucket: str, s3_server: str) -> None:
    with Gate(s3_server) as gate:
        through = bucket.replace(s3_server, gate.address)
        process = start(through, *ONE_AT_A_TIME, program=IMPATIENT)
        wait_for(lambda: len(records(bucket).trials) >= 2, process)
        gate.close()
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, output
        assert "s3://emoreg does not answer; waiting until" in output
        assert "emoreg: Mend what the system refuses and run the same command again: " in output
        assert "Traceback" not in output
        assert "secret" not in output
        before = records(bucket).trials
        gate.open()
        run(through, *ONE_AT_A_TIME)
    after = records(bucket).trials
    assert {identity: after[identity] for identity in before} == before, "a finished trial was run again"
    assert len(after) == 5
