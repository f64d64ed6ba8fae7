from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emoreg.cli.progress import Progress
from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.resolved import UNKNOWN, resolve_trial
from emoreg.results.analysis import num_planned
from emoreg.results.records import EpochRecord, Provenance, TrialRecord
from emoreg.results.tables import Records
from emoreg.tracking.observer import RunStatus
from emoreg.tuning.manifest import write_manifest
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY, tiny

STUDY = tiny_study()
PARAMS = {"backbone": "test_resnet", "regulation.balance": 0.42200636748455544, "pretraining.epochs": 2}
TRIAL = resolve_trial(TINY)
PROVENANCE = Provenance(study="tiny", storage="", command=None, versions={}, git_commit=None, host="here")


class Run:
    """What a driver does around a study's progress."""

    def __init__(self, storage: Path, *records: TrialRecord, terminal: bool = False, study: StudyConfig = STUDY) -> None:
        folder = storage / study.name
        folder.mkdir(parents=True)
        write_manifest(dataclasses.replace(study, storage=str(storage)), folder, UNKNOWN)
        self._records = Records(folder)
        for record in records:
            self._records.add_trial(record)
        options: Any = {"force_terminal": True, "color_system": None} if terminal else {}
        self.console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, soft_wrap=True, **options)
        self.progress = Progress(str(folder), self.console)
        self.status = RunStatus(
            run=self._records.begin_run(PROVENANCE),
            num_running=0,
            num_waiting=0,
            trials=self._records.trials,
            num_planned=num_planned(study),
        )

    def begun(self) -> Progress:
        self.progress.on_run_start(self.status)
        return self.progress

    def end(self, record: TrialRecord) -> None:
        self._records.add_trial(record)
        self.progress.on_end(TRIAL, record)

    @property
    def text(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def start(progress: Progress, config: TrialConfig, role: Any = "search") -> None:
    progress.on_start(resolve_trial(config), role)


def epoch(stage: Any, number: int) -> EpochRecord:
    return EpochRecord(
        identity=TRIAL.identity,
        stage=stage,
        epoch=number,
        step=number,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.0,
        val_accuracy=0.5 if stage == "regulation" else None,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=1.0,
        measured_balance=None,
        measured_balance_std=None,
    )


def test_a_line_for_each_trial_that_is_the_best_so_far(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.begun() as progress:
        for seed, accuracy in enumerate((0.5, 0.4, 0.6)):
            start(progress, tiny(seed=seed))
            run.end(ended(tiny(seed=seed), accuracy=accuracy, params=PARAMS))
            progress.on_saved(resolve_trial(tiny(seed=seed)))
    lines = run.text.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("3/5 trials: 3 finished, 0 running, about ")
    assert lines[1].endswith("best validation accuracy 60.0 %: test_resnet, regulation.balance 0.422, pretraining.epochs 2")
    assert lines[2].startswith("3 trials: 3 finished, in ")
    assert "{" not in run.text


def test_what_runs_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    progress = run.begun()
    start(progress, TINY, "control")
    start(progress, STUDY.control_trials()[1], "control")
    progress.on_epoch(TRIAL, epoch("pretraining", 1))
    run.end(ended(tiny(seed=9)))
    assert "now: regulation test_resnet pretraining 1/1; plain test_resnet starting" in run.text


def test_a_confirmation_says_when_its_accuracies_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.cli.progress._LINE_SECONDS", 0.0)
    confirming = dataclasses.replace(STUDY, num_trials=0, controls=(), confirmed=(tiny(seed=8), tiny(seed=9)))
    run = Run(tmp_path, study=confirming)
    run.begun().on_tick(run.status)
    assert run.text.endswith(" running, time left: not known yet | accuracies are shown once all trials have ended\n")


def test_a_trial_that_saves_on_its_way_is_told(tmp_path: Path) -> None:
    progress = (run := Run(tmp_path)).begun()
    start(progress, TINY)
    progress.on_epoch(TRIAL, epoch("regulation", 1))
    progress.on_saved(TRIAL)
    assert run.text == f"saved on its way: trial {TRIAL.identity}, search test_resnet regulation 1/2\n"


def test_a_failed_trial_is_told_at_once_with_its_reason_as_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begun()
    run.end(ended(status="failed", message="KeyError: [red]"))
    assert run.text == f"failed: trial {TRIAL.identity}, test_resnet: KeyError: [red]\n"


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_a_terminal_shows_a_table_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: str) -> None:
    monkeypatch.setenv("TERM", terminal)
    run = Run(tmp_path, terminal=True)
    with run.progress as progress:
        if terminal == "dumb":
            assert progress._live is None, "it cannot rewrite lines, so it is told line by line"
            return
        assert progress._live is not None
        run.console.print(progress._live.get_renderable())
        assert "Preparing image sets, starting Ray" in run.text
        run.begun()
        start(progress, TINY, "control")
        progress.on_epoch(TRIAL, epoch("regulation", 1))
        run.console.print(progress._live.get_renderable())
        run.end(dataclasses.replace(ended(tiny(seed=3), accuracy=0.75)))
    assert f"{TRIAL.identity}  regulation  test_resnet    0.500  regulation    1/2         50.0" in run.text
    assert "0/5 trials" in run.text
    assert " | best" not in run.text, "it is drawn, and not printed as a line beside"


def test_counts_go_on_from_what_earlier_runs_recorded(tmp_path: Path) -> None:
    regulated, plain = STUDY.control_trials()
    run = Run(
        tmp_path,
        ended(regulated, role="control"),
        ended(plain, role="control", status="failed", message="x"),  # will be run again
        ended(tiny(seed=1), accuracy=0.9),
        ended(tiny(seed=2), role="trial", accuracy=1.0),
        ended(tiny(seed=3, control="shuffled"), role="control"),  # of controls that the study no longer has
    )
    progress = run.begun()
    run.end(ended(tiny(seed=4), status="pruned"))
    run.end(ended(tiny(seed=5), accuracy=0.95))
    assert "4/5 trials: 3 finished, 1 pruned, 0 running" in run.text
    assert "best validation accuracy 95.0 %" in run.text
    start(progress, plain, "control")
    run.end(ended(plain, role="control"))
    assert progress.closing_line().startswith("5 trials: 4 finished, 1 pruned, 3 of them now, in ")


def test_the_closing_line_counts_what_there_is(tmp_path: Path) -> None:
    run = Run(tmp_path)
    progress = run.begun()
    for seed in range(3):
        run.end(ended(tiny(seed=seed), seconds=60.0))
    run.end(ended(tiny(seed=4), status="pruned"))
    # one searched trial fewer than asked for: a proposal that repeated another is told without being run
    assert progress.closing_line() == "4 trials: 3 finished, 1 pruned, in 0 s. Device time: 3 min, 45 s to pre-train."


def test_a_study_of_which_nothing_is_missing_closes_too(tmp_path: Path) -> None:
    """Then no run begins."""
    run = Run(tmp_path, *(ended(tiny(seed=seed)) for seed in range(2)))
    with run.progress:
        pass
    assert run.text.startswith("2 trials: 2 finished, none was missing. ")


def test_a_run_that_fails_has_no_closing_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(OSError, match="no disk"), run.progress:
        raise OSError("no disk")
    assert not run.text


def test_lines_come_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    progress = run.begun()
    progress.on_tick(run.status)
    assert not run.text
    monkeypatch.setattr("emoreg.cli.progress._LINE_SECONDS", 0.0)
    progress.on_tick(dataclasses.replace(run.status, num_waiting=2))
    assert run.text.startswith("0/5 trials: 0 finished, 0 running, 2 waiting for pre-training, time left: not known yet")


def test_messages_of_the_driver_are_passed_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    progress = run.begun()
    start(progress, TINY)
    progress.on_retry(TRIAL, "its worker died")
    progress.on_stopping()
    progress.on_message("the store [x] is far away")
    first, second, third = run.text.splitlines()
    assert first == f"broken, and begun again soon from its checkpoint: trial {TRIAL.identity}: its worker died"
    assert second.startswith("Stopping: running trials finish their step and save.")
    assert third == "the store [x] is far away"
