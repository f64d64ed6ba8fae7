from __future__ import annotations

import dataclasses
import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from emoreg.cli.local import run_single
from rich.console import Console

from emoreg.config import ExperienceConfig, ResourcesConfig, StudyConfig
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage import checkpoint
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.training.trial import CHECKPOINT
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import CPU, TINY, same, timeless, tiny

VOLATILE = {"started", "ended"}


pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def single(study: StudyConfig, evaluate_on: Any = "validation", code: int = 0) -> tuple[TrialRecord, str]:
    folder = Path(study.storage) / study.name
    console = Console(file=io.StringIO(), width=80, highlight=False)
    assert run_single(study, WorkingCopy(Files(str(folder))), Records(folder), evaluate_on, CPU, console) == code
    assert isinstance(console.file, io.StringIO)
    return Records(folder).trials[study.trial.identity], console.file.getvalue()


def settled(record: TrialRecord) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(record).items() if name not in VOLATILE}


def test_a_trial_is_told_and_recorded(study: StudyConfig) -> None:
    record, text = single(study)
    assert (record.role, record.number, record.status, record.params) == ("trial", None, "finished", "{}")
    assert record.test_accuracy is None
    lines = text.splitlines()
    assert lines[0] == f"trial {TINY.identity}: test_resnet, control none, seed 0, on CPU"
    assert [line.split()[:2] for line in lines[1:4]] == [["pretraining", "1/1"], ["regulation", "1/2"], ["regulation", "2/2"]]
    assert lines[4] == f"validation accuracy {record.val_accuracy:.4f}, balance 0.500"
    assert lines[7] == f"TensorBoard:  emoreg tensorboard {Path(study.storage) / 'tiny'}"
    epochs = Records(Path(study.storage) / "tiny").epochs
    assert list(epochs) == [
        (TINY.identity, stage, n) for stage, n in (("pretraining", 1), ("regulation", 1), ("regulation", 2))
    ]


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
    assert f"test accuracy {tested.test_accuracy:.4f} (the test split was opened, and the record says so)" in text
    once_more, text = single(study)
    assert settled(once_more) == settled(tested), "it goes on saying so"
    assert "test accuracy" not in text


def test_a_trial_of_the_study_stays_what_it_was(study: StudyConfig) -> None:
    params = {"regulation.balance": 0.5}
    Records(Path(study.storage) / "tiny").add_trial(ended(TINY, role="search", number=7, params=params))
    record, _ = single(study)
    assert (record.role, record.number, record.params) == ("search", 7, '{"regulation.balance": 0.5}')


def test_a_diverged_trial_is_pruned_with_the_step(study: StudyConfig) -> None:
    wild = tiny(regulation__optimizer__name="sgd", regulation__optimizer__learning_rate=1e30)
    wild = dataclasses.replace(
        wild,
        regulation=dataclasses.replace(
            wild.regulation, optimizer=dataclasses.replace(wild.regulation.optimizer, gradient_clip=None)
        ),
    )
    record, text = single(dataclasses.replace(study, trial=wild), code=1)
    assert record.status == "pruned"
    assert record.reason is not None
    assert "not finite at step" in record.reason
    assert f"pruned: {record.reason}" in text


SLOW = tiny(regulation__epochs=1, regulation__batch_size=2, task__num_images=240)  # 120 steps in its only epoch


def slow_study(storage: str, name: str = "tiny") -> StudyConfig:
    return tiny_study(storage=storage, name=name, trial=SLOW, experience=ExperienceConfig(share=False))


def in_a_process(storage: str) -> int:
    """What ``emoreg trial`` does."""
    study = slow_study(storage)
    copy = WorkingCopy(Files(f"{storage}/{study.name}"))
    return run_single(study, copy, Records(copy.folder), "validation", CPU, Console(width=80, highlight=False))


def test_a_signal_in_mid_epoch_saves_and_the_same_command_goes_on_to_the_bit(storage: Path) -> None:
    whole, _ = single(slow_study(str(storage), name="whole"))
    program = "import sys; from tests.test_single import in_a_process; sys.exit(in_a_process(sys.argv[1]))"
    path = storage / "tiny" / "trials" / SLOW.identity / CHECKPOINT
    steps = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(storage)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            while "pretraining   1/1" not in (line := process.stdout.readline()):
                assert line, "it ended too soon"
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert "stopping as soon as it is saved; once more to leave at once" in err
        assert out.splitlines()[-1] == "interrupted, and saved: run the same command again to go on from here"
        state = checkpoint.load(path)
        assert state is not None
        assert state["epochs"] == 0
        assert steps < state["steps"] < 120
        steps = state["steps"]
        assert not Records(storage / "tiny").trials
    record, _ = single(slow_study(str(storage)))
    assert timeless(settled(record)) == timeless(settled(whole))
    assert same(checkpoint.load(path), checkpoint.load(storage / "whole" / "trials" / SLOW.identity / CHECKPOINT))
    assert not list(storage.rglob("*.tmp"))


def test_it_computes_with_the_threads_of_the_study(study: StudyConfig) -> None:
    torch.set_num_threads(1)
    single(dataclasses.replace(study, resources=ResourcesConfig(cpus_per_trial=2)))
    assert torch.get_num_threads() == 2
