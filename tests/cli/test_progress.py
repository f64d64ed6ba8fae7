from __future__ import annotations

import io

import pytest
from rich.console import Console

from emoreg.cli.progress import StudyProgress
from emoreg.config import Choice, Float, SamplerConfig, StudyConfig
from emoreg.config.search_space import num_searched
from emoreg.formatting import duration
from emoreg.results.records import EpochRecord, TrialRecord
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY, tiny

STUDY = tiny_study()
PARAMS = {"backbone": "test_resnet", "regulation.balance": 0.42200636748455544, "pretraining.epochs": 2}


def piped() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def epoch(identity: str, stage: str, number: int) -> EpochRecord:
    return EpochRecord(
        identity=identity,
        stage=stage,  # type: ignore[arg-type]
        epoch=number,
        step=number,
        loss=1.0,
        accuracy=0.5,
        val_loss=1.0,
        val_accuracy=0.5 if stage == "regulation" else None,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=1.0,
        balance=None,
        balance_std=None,
    )


def progress(console: Console, *records: TrialRecord, study: StudyConfig = STUDY) -> StudyProgress:
    return StudyProgress(study, {record.identity: record for record in records}, console)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (90000, "25 h 0 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_line_for_each_trial_that_is_the_best_so_far() -> None:
    console = piped()
    shown = progress(console)
    with shown.shown():
        for seed, accuracy in enumerate((0.5, 0.4, 0.6)):
            shown.started(tiny(seed=seed).identity, tiny(seed=seed), "search")
            shown.ended(ended(tiny(seed=seed), accuracy=accuracy, params=PARAMS))
    lines = text(console).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("3/5 trials: 3 finished, 0 running, about ")
    assert lines[1].endswith("best accuracy 0.6: test_resnet, regulation.balance 0.422, pretraining.epochs 2")
    assert "{" not in text(console)


def test_what_runs_is_named() -> None:
    console = piped()
    shown = progress(console)
    plain = STUDY.control_trials()[1]
    shown.started(TINY.identity, TINY, "control")
    shown.started(plain.identity, plain, "control")
    shown.epoch(epoch(TINY.identity, "pretraining", 1))
    shown.epoch(epoch("another study's", "pretraining", 1))
    shown.ended(ended(tiny(seed=9)))
    assert "now: regulation test_resnet pretraining 1/1; plain test_resnet starting" in text(console)


def test_a_failed_trial_is_told_at_once_with_its_reason_as_it_is() -> None:
    console = piped()
    shown = progress(console)
    shown.ended(ended(status="failed", reason="KeyError: [red]"))
    assert text(console) == f"failed: trial {TINY.identity}, test_resnet: KeyError: [red]\n"


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_a_terminal_shows_a_table_in_place(monkeypatch: pytest.MonkeyPatch, terminal: str) -> None:
    monkeypatch.setenv("TERM", terminal)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    shown = progress(console)
    with shown.shown():
        shown.started(TINY.identity, TINY, "control")
        shown.epoch(epoch(TINY.identity, "regulation", 1))
        if terminal == "dumb":
            assert shown._live is None, "it cannot rewrite lines, so it is told line by line"
            return
        console.print(shown._live.get_renderable())  # type: ignore[union-attr]
        shown.ended(ended(tiny(seed=3), accuracy=0.75))
    assert f"{TINY.identity}  regulation  test_resnet    0.500  regulation    1/2     0.500" in text(console)
    assert "0/5 trials" in text(console)
    assert text(console).count("best accuracy 0.75") == 1, "drawn once, at the end, and not printed as a line beside"


def test_counts_go_on_from_what_earlier_runs_recorded() -> None:
    console = piped()
    none, plain = STUDY.control_trials()
    shown = progress(
        console,
        ended(none, role="control"),
        ended(plain, role="control", status="failed", reason="x"),  # will be run again
        ended(tiny(seed=1), accuracy=0.9),
        ended(tiny(seed=2), role="trial", accuracy=1.0),
        ended(tiny(seed=3, control="shuffled"), role="control"),  # of controls that the study no longer has
    )
    shown.ended(ended(tiny(seed=4), status="pruned"))
    shown.ended(ended(tiny(seed=5), accuracy=0.95))
    assert "4/5 trials: 3 finished, 1 pruned, 0 running" in text(console)
    assert "best accuracy 0.95" in text(console)


def test_the_closing_line_counts_what_there_is() -> None:
    shown = progress(piped())
    for seed in range(3):
        shown.ended(ended(tiny(seed=seed), seconds=60.0))
    shown.ended(ended(tiny(seed=4), status="pruned"))
    line = shown.closing_line()
    # one searched trial fewer than asked for: a proposal that repeated another is told without being run
    assert line == "4 trials: 3 finished, 1 pruned, in 0 s. Device time: 3 min, 45 s to pre-train."
    resumed = progress(piped(), *(ended(tiny(seed=seed)) for seed in range(2)))
    assert ", none was missing. " in resumed.closing_line()
    resumed.ended(ended(tiny(seed=2)))
    assert ", 1 of them now, in 0 s. " in resumed.closing_line()


def test_a_grid_ends_with_its_last_combination() -> None:
    space = {"regulation.balance": Float(0.0, 1.0, step=0.5), "pretraining.epochs": Choice((1, 2))}
    grid = SamplerConfig(name="grid")
    assert num_searched(tiny_study(search_space=space, sampler=grid, num_trials=100)) == 6
    assert num_searched(tiny_study(search_space=space, sampler=grid, num_trials=4)) == 4
    assert num_searched(tiny_study(search_space=space, num_trials=100)) == 100
