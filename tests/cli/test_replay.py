from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emoreg.cli.replay import replay
from emoreg.cli.trial import run_one
from emoreg.config import PretrainingConfig, StudyConfig, TrialConfig, to_json
from emoreg.config.resolved import UNKNOWN
from emoreg.errors import ConfigError, StorageError
from emoreg.results.outcome import EndReason
from emoreg.results.records import EpochRecord, Provenance, TrialRecord
from emoreg.results.tables import Records
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.images import image_loader
from emoreg.tuning.manifest import provenance, write_manifest
from tests.helpers.studies import study_file, tiny_study
from tests.helpers.trials import CPU, TINY, tiny
from tests.helpers.waiting import PATIENCE
from tests.helpers.written import made_up_config, write_rows, write_study

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def single(study: StudyConfig, evaluate_on: Any = "validation", code: int = 0) -> Path:
    """Run the study's trial, and record it; the study's folder."""
    assert run_one(study, evaluate_on, CPU, Console(file=io.StringIO())) == code
    return Path(study.storage) / study.name


def identity_of(study: StudyConfig, **changes: Any) -> str:
    """The identity of the study's trial, or of one that differs from it."""
    return resolved_trial(dataclasses.replace(study.trial, **changes), image_loader(study.storage)).identity


def rewrite(
    folder: Path,
    change: Callable[[TrialRecord], TrialRecord],
    *,
    without: Callable[[EpochRecord], bool] = lambda epoch: False,
) -> TrialRecord:
    """Change the only record of a study, and leave out some of its epochs."""
    records = Records(folder)
    [record] = records.trials.values()
    changed = change(record)
    epochs = [epoch for epoch in records.epochs.values() if not without(epoch)]
    write_rows(folder, "trials", TrialRecord, [changed])
    write_rows(folder, "epochs", EpochRecord, [dataclasses.replace(epoch, identity=changed.identity) for epoch in epochs])
    return changed


def replayed(study: StudyConfig, identity: str | None = None) -> tuple[int, str]:
    """Exit code and output."""
    console = Console(file=io.StringIO(), width=400, highlight=False)
    code = replay(study, identity or identity_of(study), CPU, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def row(text: str, quantity: str) -> list[str]:
    """What the table says of a quantity: recorded, replayed, difference."""
    found = re.search(rf"^ *{re.escape(quantity)} +(.*?) *$", text, flags=re.MULTILINE)
    assert found, text
    return found[1].split()


def command(study: StudyConfig, folder: Path, *options: str) -> list[str]:
    """What a user types; the study's file is written into ``folder``."""
    file = study_file(folder)
    emoreg = [sys.executable, "-m", "emoreg", "trial", file, "--storage", study.storage, "--device", "cpu"]
    return [*emoreg, "--replay", identity_of(study), *options]


@pytest.mark.slow
def test_a_fresh_process_comes_to_the_same_to_the_bit_and_touches_nothing(study: StudyConfig, tmp_path: Path) -> None:
    folder = single(study)
    before, images = tree(folder), tree(folder.parent / "imagesets")
    experience = tree(folder.parent / "experience")
    done = subprocess.run(command(study, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"replay of trial {identity_of(study)} of 'tiny', finished on 20")
    assert [line.split()[:2] for line in lines[1:4]] == [["pretraining", "1/1"], ["regulation", "1/2"], ["regulation", "2/2"]]
    record = Records(folder).trials[identity_of(study)]
    assert row(done.stdout, "val_accuracy") == [f"{record.val_accuracy:.6f}", f"{record.val_accuracy:.6f}", "0"]
    for quantity in ("measured_balance", "pretraining epoch 1, train_loss", "regulation epoch 2, val_loss"):
        assert row(done.stdout, quantity)[-1] == "0"
    assert lines[-1] == "Equal to the bit in all 28 numbers."
    assert tree(folder) == before
    assert tree(folder.parent / "experience") == experience
    assert tree(folder.parent / "imagesets") == images


def test_a_deterministic_trial_that_differs_is_a_defect(study: StudyConfig) -> None:
    folder = single(study)
    rewrite(folder, lambda record: dataclasses.replace(record, val_accuracy=(record.val_accuracy or 0.0) - 0.25))
    code, text = replayed(study, identity_of(study)[:4])
    assert code == 1
    assert row(text, "val_accuracy")[-1] == "+2.5e-01"
    assert "1 of 28 numbers differ, by 2.5e-01 at most." in text
    assert "must be equal to the bit with the same versions, as far as is known (a study's runs note theirs" in text


def excused(study: StudyConfig, trial: TrialConfig = TINY, provenance: Provenance | None = None, **changes: Any) -> str:
    """What is said of a trial that is recorded with another accuracy, where that is no defect."""
    changed = dataclasses.replace(study, trial=trial)
    folder = single(changed)
    record = rewrite(
        folder, lambda record: dataclasses.replace(record, val_accuracy=(record.val_accuracy or 0.0) + 1e-3, **changes)
    )
    if provenance is not None:
        records = Records(folder)
        run = records.begin_run(provenance)
        records.add_run(dataclasses.replace(run, started=record.started))
        write_manifest(study, folder, UNKNOWN)
    code, text = replayed(changed, identity_of(changed))
    assert code == 0, text
    assert "1 of 28 numbers differ, by 1.0e-03 at most. It need not be equal to the bit: " in text
    return text.rstrip("\n").rpartition("to the bit: ")[2]


def test_a_trial_that_is_not_deterministic_may_differ(study: StudyConfig) -> None:
    assert excused(study, tiny(deterministic=False)) == "the trial is not deterministic."


def test_another_device_may_differ(study: StudyConfig) -> None:
    assert excused(study, device="NVIDIA H100") == "it ran on NVIDIA H100, and now on CPU."
    said = excused(tiny_study(storage=study.storage, name="other"), tiny(deterministic=False), device="NVIDIA H100")
    assert said.endswith("now on CPU (precision 'auto' computes in bf16 where the device has it).")


def test_other_versions_and_machines_may_differ(study: StudyConfig) -> None:
    here = provenance(study, None)
    other = dataclasses.replace(here, versions={**here.versions, "torch": "2.1.0"}, host="there (Linux)")
    said = excused(study, provenance=other)
    assert said == (
        f"it ran with torch 2.1.0, and now with {here.versions['torch']}; its study was run from there (Linux), and this is "
        f"{here.host}."
    )


def test_a_trial_that_took_its_experience_from_the_store_pays_for_it_here(study: StudyConfig) -> None:
    """It has no epochs of pre-training of its own: what there is is compared."""
    rewrite(single(study), lambda record: record, without=lambda epoch: epoch.stage == "pretraining")
    code, text = replayed(study)
    assert code == 0
    assert "pretraining   1/1" in text
    assert "pretraining epoch" not in text
    assert row(text, "regulation epoch 1, val_accuracy")[-1] == "0"


def test_a_trial_that_the_scheduler_has_stopped_is_replayed_as_far_as_it_came(study: StudyConfig) -> None:
    folder = single(study)
    first = Records(folder).epochs[identity_of(study), "regulation", 1]
    rewrite(
        folder,
        lambda record: dataclasses.replace(
            record,
            status="pruned",
            end_reason=EndReason.STOPPED_BY_SCHEDULER,
            val_accuracy=first.val_accuracy,
            val_loss=first.val_loss,
            regulation_epochs=1,
            num_parameters=None,
        ),
        without=lambda epoch: (epoch.stage, epoch.epoch) == ("regulation", 2),
    )
    code, text = replayed(study)
    assert code == 0, text
    assert "regulation   1/2" in text
    assert "regulation   2/2" not in text
    assert row(text, "val_loss")[-1] == "0"


def test_a_trial_that_diverged_diverges_again_at_its_step(study: StudyConfig) -> None:
    wild = tiny(regulation__optimizer__name="sgd", regulation__optimizer__learning_rate=1e30)
    free = dataclasses.replace(wild.regulation.optimizer, gradient_clip=None)
    wild = dataclasses.replace(wild, regulation=dataclasses.replace(wild.regulation, optimizer=free))
    changed = dataclasses.replace(study, trial=wild)
    folder = single(changed, code=1)
    code, text = replayed(changed, identity_of(changed))
    assert code == 0, text
    assert re.search(r"recorded: (the loss of regulation is not finite at step \d+); replayed: \1\n", text)
    rewrite(folder, lambda record: dataclasses.replace(record, message="the loss of regulation is not finite at step 99"))
    assert replayed(changed, identity_of(changed))[0] == 1


def test_the_test_split_is_opened_again_for_a_trial_of_a_confirmation(study: StudyConfig) -> None:
    single(dataclasses.replace(study, name="tiny.confirm"), "test")
    code, text = replayed(study)
    assert code == 0, text
    assert text.startswith(f"replay of trial {identity_of(study)} of 'tiny.confirm'")
    assert "It is a trial that opens the test set, so its replay opens it again" in text
    assert row(text, "test_accuracy")[-1] == "0"


def test_no_trial_of_a_confirmation_is_replayed_before_all_have_ended(tmp_path: Path) -> None:
    config = made_up_config(num_trials=2, controls=("regulated", "plain"))
    folder = write_study(tmp_path, config, num_seeds=3).with_name("made-up.confirm")
    first, *others = Records(folder).trials.values()
    write_rows(folder, "trials", TrialRecord, others)
    with pytest.raises(ConfigError, match="Run the confirmation to its end first: what its trials found on the test set"):
        replayed(dataclasses.replace(config, storage=str(tmp_path)), others[0].identity)
    with pytest.raises(ConfigError, match="Name one trial of 'made-up' or its confirmation"):
        replayed(dataclasses.replace(config, storage=str(tmp_path)), first.identity)


def test_a_control_is_run_as_it_was_recorded(study: StudyConfig) -> None:
    control = dataclasses.replace(tiny(control="shuffled"), neutral=TINY.stimuli)
    changed = dataclasses.replace(study, trial=control)
    single(changed)
    code, text = replayed(study, identity_of(changed))
    assert code == 0, text
    assert "test_resnet, control shuffled, seed 0, on CPU" in text


def test_images_that_the_trial_did_not_learn_from_are_refused(study: StudyConfig) -> None:
    rewrite(single(study), lambda record: dataclasses.replace(record, identity="0" * 12))
    said = "Restore the images that trial 000000000000 learned from, or replay it with the emoreg that wrote it: "
    with pytest.raises(StorageError, match=said):
        replayed(study, "0" * 12)


def with_settings(**changes: Any) -> Callable[[TrialRecord], TrialRecord]:
    """What gives a record's configuration other settings of pre-training; None takes one out."""

    def change(record: TrialRecord) -> TrialRecord:
        values = json.loads(record.config)
        values["pretraining"] |= changes
        values["pretraining"] = {name: value for name, value in values["pretraining"].items() if value is not None}
        return dataclasses.replace(record, config=json.dumps(values))

    return change


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_steps": None}, "its configuration has the identity [0-9a-f]{12} now; "),
        ({"epochs": 3}, "its configuration has the identity [0-9a-f]{12} now; "),
        ({"cooldown": 3}, "pretraining.cooldown"),
    ],
)
def test_a_record_of_another_emoreg_is_refused(changes: dict[str, Any], said: str, study: StudyConfig) -> None:
    rewrite(single(study), with_settings(**changes))
    by = "it was written by emoreg of an unknown version, and"
    with pytest.raises(StorageError, match=f"trial {identity_of(study)} .*{said}.*{by}"):
        replayed(study)


def test_a_trial_that_is_not_there_is_told_from_those_that_are(study: StudyConfig) -> None:
    with pytest.raises(ConfigError, match=f"'{study.storage}/tiny' has none"):
        replayed(study)
    folder = single(study)
    wrong = identity_of(study)[:-1] + ("0" if identity_of(study)[-1] != "0" else "1")
    with pytest.raises(ConfigError, match=f"'{wrong}' names none, the nearest are {identity_of(study)}"):
        replayed(study, wrong)
    with pytest.raises(ConfigError, match="of which the first 4 may do, but it is"):
        replayed(study, identity_of(study)[:3])
    records = Records(folder)
    twin = identity_of(study)[:4] + "00000000"
    records.add_trial(dataclasses.replace(records.trials[identity_of(study)], identity=twin))
    with pytest.raises(ConfigError, match=f"'{identity_of(study)[:4]}' names 2, it may be {identity_of(study)}, {twin}"):
        replayed(study, identity_of(study)[:4])
    records.add_trial(
        dataclasses.replace(records.trials[identity_of(study)], identity=twin, status="failed", message="its worker died")
    )
    with pytest.raises(ConfigError, match=r"has none on record \(failed: its worker died\)"):
        replayed(study, twin)


@pytest.mark.soak
@pytest.mark.slow
def test_interrupted_it_leaves_nothing(storage: Path, tmp_path: Path) -> None:
    """A trial that would take an hour."""
    endless = dataclasses.replace(TINY, pretraining=PretrainingConfig(epochs=1, batch_size=32))
    study = tiny_study(storage=str(storage), trial=endless)
    folder = single(study)
    long = dataclasses.replace(endless, regulation=dataclasses.replace(endless.regulation, epochs=10**6))
    record = rewrite(
        folder,
        lambda record: dataclasses.replace(
            record, identity=identity_of(study, regulation=long.regulation), config=json.dumps(to_json(long))
        ),
    )
    before = tree(storage)
    (tmp_path / "tmp").mkdir()
    words = [*command(study, tmp_path), "--replay", record.identity]
    with subprocess.Popen(
        ["env", f"TMPDIR={tmp_path}/tmp", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "regulation   2/" not in (line := process.stdout.readline()):
            assert line, "it ended too soon"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert out.splitlines()[-1] == "interrupted: nothing is kept of a replay"
    assert tree(storage) == before
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]
