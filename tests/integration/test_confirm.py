"""A study, and the confirmation of its best: on fresh seeds, beside every control, once on the test split."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emoreg.results.plan import read_openings
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from tests.helpers.command_line import emoreg_here
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.test_study import trials

STUDY = Path(__file__).with_name("neutral_study.py")
ONE = ("--seeds", "1", "--underpowered")


def command(name: str, storage: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "emoreg", name, str(STUDY), "--storage", str(storage), *options]


def emoreg(name: str, storage: Path, *options: str) -> str:
    done = subprocess.run(command(name, storage, *options), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def confirm(storage: Path, *options: str) -> str:
    return emoreg("confirm", storage, *options)


def planned(storage: Path, *options: str) -> str:
    return emoreg_here("confirm", str(STUDY), "--storage", str(storage), *options, "--dry-run")


def refused(storage: Path, *options: str) -> str:
    return emoreg_here("confirm", str(STUDY), "--storage", str(storage), *options, code=2)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study that has ended."""
    storage = tmp_path_factory.mktemp("searched")
    emoreg("run", storage)
    return storage


@pytest.mark.slow
def test_a_confirmation_from_its_plan_to_its_verdict(searched: Path) -> None:
    before = trials(searched)
    plan = planned(searched, *ONE)
    assert "8 trials: regulation, plain, compute_matched, ensemble, emotional, untrained, shuffled, neutral, on seed" in plan
    too_few = refused(searched, "--seeds", "2", "--dry-run")
    assert "Give --seeds 3 or more, or --underpowered to open the test set all the same" in too_few
    assert not (searched / "tiny.confirm").exists()
    assert not (searched / "test-openings").exists()

    first = subprocess.Popen(
        command("confirm", searched, *ONE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    records = searched / "tiny.confirm" / "records" / "trials.parquet"
    wait_for(lambda: records.exists() and pq.read_metadata(records).num_rows >= 3, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    killed = trials(searched, "tiny.confirm")

    output = confirm(searched, *ONE)
    rows = trials(searched, "tiny.confirm")
    assert {identity: rows[identity] for identity in killed} == killed, "a finished trial opened the test split again"
    assert {(row["role"], row["status"]) for row in rows.values()} == {("confirm", "finished")}
    controls = ["compute_matched", "emotional", "ensemble", "neutral", "plain", "regulated", "shuffled", "untrained"]
    assert sorted((row["control"], row["seed"]) for row in rows.values()) == [(name, 1000) for name in controls]
    assert all(0.0 <= float(str(row["test_accuracy"])) <= 1.0 for row in rows.values())
    assert {row["val_accuracy"] for row in rows.values()} == {None}, "nothing is held out"
    for row in rows.values():
        config = json.loads(str(row["config"]))
        assert [config[role]["split_seed"] for role in ("task", "stimuli", "neutral")] == [row["seed"]] * 3
        assert config["task"]["validation_fraction"] == 0
    accounts = {found.role: found for found in read_written(Files(f"{searched}/tiny.confirm")).images}
    assert (accounts["task"].num_train, accounts["task"].num_validation) == (32, 0)
    epochs = pq.read_table(searched / "tiny.confirm" / "records" / "epochs.parquet").to_pylist()
    pretraining = [(row["identity"], row["epoch"]) for row in epochs if row["stage"] == "pretraining"]
    length = max(epoch for _, epoch in pretraining)
    assert len(pretraining) == 3 * length, "three pre-training runs, and none paid for twice"
    assert {row["stimuli"] for row in rows.values() if row["control"] == "neutral"} == {"openmoji-objects"}
    assert "test_resnet: cannot be told (n = 1): a verdict takes 3 seeds or more" in output
    assert trials(searched) == before, "the search was touched"
    assert not any(row["test_accuracy"] is not None for row in before.values()), "the search opened the test split"

    written = (searched / "tiny.confirm" / "study.json").read_text()
    extended = refused(searched, "--seeds", "3", "--underpowered")
    assert (searched / "tiny.confirm" / "study.json").read_text() == written, "what is refused leaves no trace"
    assert "what a confirmation runs is fixed before the test set is opened, but it was opened for test_resnet" in extended
    again = confirm(searched, "--seeds", "3", "--underpowered", "--again")
    assert "test_resnet (exploratory: the seeds were extended from 1 to 3 once their answer could be known; controls" in again
    openings = json.loads((searched / "tiny.confirm" / "plan.json").read_text())["openings"]
    assert [sorted({trial["seed"] for trial in opening["trials"]}) for opening in openings] == [
        [1000],
        [1000, 1001, 1002],
    ]
    assert {identity: trials(searched, "tiny.confirm")[identity] for identity in rows} == rows
    entries = [json.loads(path.read_text()) for path in sorted(searched.glob("test-openings/*/*.json"))]
    assert [(entry["study"], len(entry["configurations"])) for entry in entries] == [("tiny", 1)] * 2
    assert [entry["plan"] for entry in entries] == [
        opening.digest for opening in read_openings(Files(f"{searched}/tiny.confirm"))
    ]

    (searched / "tiny.confirm" / "plan.json").unlink()
    lost = refused(searched, "--seeds", "3", "--underpowered", "--again")
    assert "Restore plan.json of the confirmation of 'tiny' from a copy" in lost


@pytest.mark.soak
@pytest.mark.slow
def test_the_test_split_opened_before_is_told(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "tiny", tmp_path / "tiny")
    emoreg("trial", tmp_path, "--evaluate", "test")
    assert "The test set has been opened by 1 trial of the study already" in planned(tmp_path, *ONE)
