from __future__ import annotations

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from emoreg.cli.trial import EpochLines, run_one
from emoreg.config import ExperienceConfig, ResourcesConfig, StudyConfig, TrialConfig
from emoreg.config.registry import PROBES
from emoreg.config.resolved import resolve_trial
from emoreg.data import load
from emoreg.formatting import percent
from emoreg.results.ledger import Ledger
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.images import image_loader
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import CPU, TINY, load_state, same, timeless, tiny
from tests.helpers.waiting import PATIENCE
from tests.helpers.written import epoch_record

ROOT = Path(__file__).parents[2]
VOLATILE = {"started", "ended"}

pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def identity_of(trial: TrialConfig, storage: str | Path) -> str:
    return resolved_trial(trial, image_loader(str(storage))).identity


def page() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False, markup=False, soft_wrap=True)


def single(study: StudyConfig, evaluate_on: Any = "validation", code: int = 0) -> tuple[TrialRecord, str]:
    console = page()
    assert run_one(study, evaluate_on, CPU, console) == code
    assert isinstance(console.file, io.StringIO)
    records = Records(Path(study.storage) / study.name)
    return records.trials[identity_of(study.trial, study.storage)], console.file.getvalue()


def settled(record: TrialRecord) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(record).items() if name not in VOLATILE}


def test_a_trial_is_told_and_recorded(study: StudyConfig) -> None:
    record, text = single(study)
    assert (record.role, record.number, record.status, record.params) == ("trial", None, "finished", "{}")
    assert record.test_accuracy is None
    assert record.val_accuracy is not None
    lines = text.splitlines()
    assert lines[0] == f"trial {record.identity}: test_resnet, control regulated, seed 0, on CPU"
    assert [line.split()[:2] for line in lines[1:4]] == [["pretraining", "1/1"], ["regulation", "1/2"], ["regulation", "2/2"]]
    assert lines[4] == f"validation accuracy {percent(record.val_accuracy)}, balance 0.500"
    assert lines[7] == f"TensorBoard:  emoreg tensorboard {Path(study.storage) / 'tiny'}"
    epochs = Records(Path(study.storage) / "tiny").epochs_of(record.identity)
    assert [(row.stage, row.epoch) for row in epochs] == [("pretraining", 1), ("regulation", 1), ("regulation", 2)]


def test_epochs_of_a_cooldown_are_counted_with_those_before_it() -> None:
    trial = resolve_trial(tiny(pretraining__epochs=2, pretraining__cooldown_epochs=3))
    console = page()
    EpochLines(trial.config, console).report(epoch_record(trial, "pretraining", 4, 0.5))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().split()[:2] == ["pretraining", "4/5"]


def test_a_profile_says_where_the_time_went_and_changes_no_number(study: StudyConfig, tmp_path: Path) -> None:
    plain, _ = single(study)
    elsewhere = dataclasses.replace(study, name="profiled", experience=ExperienceConfig(uri=str(tmp_path / "experience")))
    console = page()
    assert run_one(elsewhere, "validation", CPU, console, profile=True) == 0
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    record = Records(Path(study.storage) / "profiled").trials[plain.identity]
    assert (record.val_loss, record.val_accuracy) == (plain.val_loss, plain.val_accuracy)
    rows = dict(re.findall(r"^ *(\w[\w, ]*?) +(\d+\.\d\d) +\S+%$", text, re.MULTILINE))
    assert {"data", "forward", "backward", "optimizer", "evaluation", "writing", "waiting"} < rows.keys()
    assert float(rows["backward"]) > 0
    parts = sum(float(seconds) for name, seconds in rows.items() if name != "the whole trial")
    assert parts == pytest.approx(float(rows["the whole trial"]), abs=0.1)
    (trace,) = re.findall(r"trace, .*: (/.*regulation.*json)$", text, re.MULTILINE)
    assert {"data", "forward", "backward", "optimizer"} <= {
        event.get("name") for event in json.loads(Path(trace).read_text())["traceEvents"]
    }


def test_a_finished_trial_is_looked_at_again_and_not_trained_again(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = single(study)

    def train_again(*_: object, **__: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(torch.Tensor, "backward", train_again)
    again, text = single(study)
    assert settled(again) == settled(first), "the seconds too: nothing was paid for"
    assert "regulation   2/2" in text
    tested, text = single(study, "test")
    assert tested.test_accuracy is not None
    assert settled(dataclasses.replace(tested, test_accuracy=None)) == settled(first)
    assert f"test accuracy {percent(tested.test_accuracy)} (the test set was opened, and the record says so)" in text
    image_set = load(study.trial.task, image_size=study.trial.image_size, storage=Path(study.storage))
    (opening,) = Ledger(study.storage, image_set.test_split).entries()
    assert (opening.study, opening.configurations, opening.plan) == ("tiny", (tested.identity,), None)
    once_more, text = single(study)
    assert settled(once_more) == settled(tested), "it goes on saying so"
    assert "test accuracy" not in text


def test_a_finished_trial_whose_network_is_gone_is_told_and_not_trained_again(study: StudyConfig) -> None:
    first, _ = single(study)
    path = Path(study.storage) / "tiny" / "trials" / first.identity / CHECKPOINT
    path.unlink()
    again, text = single(study)
    assert again == first
    assert f"it finished on {first.ended[:10]} with validation accuracy {percent(first.val_accuracy or 0.0)}" in text
    assert not path.exists()
    tested, text = single(study, "test")
    assert "its network was not kept (resources.keep_networks): it is trained again to be tested" in text
    assert (tested.test_accuracy is not None, tested.val_loss) == (True, first.val_loss)


def test_a_trial_of_the_study_stays_what_it_was(study: StudyConfig) -> None:
    params = {"regulation.balance": 0.5}
    earlier = ended(TINY, role="search", number=7, params=params, status="pruned", message="stopped")  # so it goes on
    identity = identity_of(TINY, study.storage)
    earlier = dataclasses.replace(earlier, identity=identity, search_of="untrained", repeats="another")
    Records(Path(study.storage) / "tiny").add_trial(earlier)
    record, _ = single(study)
    assert record.status == "finished", "it was trained"
    assert (record.role, record.number, record.params) == ("search", 7, '{"regulation.balance": 0.5}')
    assert (record.search_of, record.repeats) == ("untrained", "another")


def test_a_diverged_trial_is_pruned_with_the_step(study: StudyConfig) -> None:
    wild = tiny(regulation__optimizer__name="sgd", regulation__optimizer__learning_rate=1e30)
    wild = dataclasses.replace(
        wild,
        regulation=dataclasses.replace(
            wild.regulation, optimizer=dataclasses.replace(wild.regulation.optimizer, gradient_clip=None)
        ),
    )
    record, text = single(dataclasses.replace(study, trial=wild), code=1)
    assert (record.status, record.end_reason) == ("pruned", "diverged")
    assert record.message is not None
    assert "not finite at step" in record.message
    assert f"pruned: {record.message}" in text


SLOW = tiny(regulation__epochs=1, regulation__batch_size=2, task__num_images=240)  # 120 steps in its only epoch


def slow_study(storage: str, name: str = "tiny") -> StudyConfig:
    return tiny_study(storage=storage, name=name, trial=SLOW, experience=ExperienceConfig(share=False))


def in_a_process(storage: str) -> int:
    """What ``emoreg trial`` does."""
    return run_one(slow_study(storage), "validation", CPU, Console(width=80, highlight=False, markup=False, soft_wrap=True))


@pytest.mark.soak
@pytest.mark.slow
def test_a_signal_in_mid_epoch_saves_and_the_same_command_goes_on_to_the_bit(storage: Path) -> None:
    whole, _ = single(slow_study(str(storage), name="whole"))
    program = "import sys; from tests.cli.test_trial import in_a_process; sys.exit(in_a_process(sys.argv[1]))"
    identity = identity_of(SLOW, storage)
    path = storage / "tiny" / "trials" / identity / CHECKPOINT
    steps = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(storage)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            while "pretraining   1/1" not in (line := process.stdout.readline()):
                assert line, "it ended too soon"
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, err
        assert "stopping as soon as it is saved; once more to leave at once" in err
        assert out.splitlines()[-1] == "interrupted, and saved: run the same command again to go on from here"
        state = load_state(path)
        assert state is not None
        assert state["epoch"] == 0
        assert steps < state["step_in_epoch"] < 120
        steps = state["step_in_epoch"]
        assert not Records(storage / "tiny").trials
    record, _ = single(slow_study(str(storage)))
    assert timeless(settled(record)) == timeless(settled(whole))
    ended, undisturbed = (load_state(storage / name / "trials" / identity / CHECKPOINT) for name in ("tiny", "whole"))
    assert ended is not None
    assert undisturbed is not None
    assert same(ended | {"history": None}, undisturbed | {"history": None})  # which names the study
    assert not list(storage.rglob("*.tmp"))


def test_what_probes_measure_is_recorded(study: StudyConfig) -> None:
    name = next(iter(PROBES))
    single(dataclasses.replace(study, trial=dataclasses.replace(study.trial, probes=(name,))))
    assert {row.probe for row in Records(Path(study.storage) / "tiny").probes.values()} == {name}


def test_it_computes_with_the_threads_of_the_study(study: StudyConfig) -> None:
    torch.set_num_threads(1)
    single(dataclasses.replace(study, resources=ResourcesConfig(cpus_per_trial=2)))
    assert torch.get_num_threads() == 2
