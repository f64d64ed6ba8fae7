"""What `emoreg status` prints."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emoreg.cli.look import print_report, print_status
from emoreg.cli.summary import print_confirmation, print_summary
from emoreg.config import BudgetConfig
from emoreg.report import answer, figures
from emoreg.results.confirmation import UNTUNED
from emoreg.results.status import RunningTrial, Status, read_status
from emoreg.results.study import load_results
from tests.helpers.written import made_up_config, write_study


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("written")
    write_study(storage)
    return storage


def shown(status: Status) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    print_status(status, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_study_that_is_done(storage: Path) -> None:
    status = read_status(str(storage / "made-up"))
    text = shown(status)
    assert status.best is not None
    assert "made-up: done, every trial has ended; its last trial ended " in text
    assert "trials    76/76: 68 finished, 6 pruned, 2 failed\n" in text
    assert f"best      validation accuracy {100 * status.best.value:.1f} %: {status.best.backbone}, regulation.balance " in text


def test_a_confirmation_shows_its_seeds_instead_of_a_best(storage: Path) -> None:
    text = shown(read_status(str(storage / "made-up.confirm")))
    assert "best" not in text
    assert text.split("finished\n")[-1].startswith("  regulation       test_resnet     10/10\n")


def test_what_runs_is_a_table(storage: Path) -> None:
    trial = RunningTrial(
        identity="abc", role="control", control="plain", backbone="vit", stage="regulation", epoch=2, epochs=5, accuracy=0.5
    )
    fresh = RunningTrial(identity="def", role="search", control="regulated", backbone="vit")
    status = dataclasses.replace(
        read_status(str(storage / "made-up")), state="running", ending=None, running=(trial, fresh), num_waiting=1
    )
    text = shown(status)
    assert "made-up: running for " in text
    assert "2 failed, 2 running, 1 waiting for pre-training\n" in text
    assert "time left not known yet" in text
    assert "  plain        abc    vit       regulation    2/5         50.0\n" in text
    assert "  search       def    vit       starting" in text


def test_what_is_used_of_a_budget_why_it_stopped_and_what_waits_to_be_tried_is_told(storage: Path) -> None:
    done = read_status(str(storage / "made-up"))
    assert "budget" not in shown(done)
    assert "enqueued" not in shown(done)
    status = dataclasses.replace(
        done,
        ending="interrupted",
        stop_reason="before its 2 hours were over (budget.hours)",
        device_hours=1.25,
        budget=BudgetConfig(hours=2, device_hours=10, cost=25, price_per_hour=2),
        enqueued=({"backbone": "test_vit", "regulation.balance": 0.3},),
    )
    text = shown(status)
    assert "made-up: stopped before its 2 hours were over (budget.hours); its last trial" in text
    assert "  budget    1.25 of 10 device hours used, 2.50 of 25 spent, at 2 an hour\n" in text
    assert "  enqueued  backbone=test_vit regulation.balance=0.3\n" in text


@pytest.mark.parametrize(
    ("state", "ending", "words"),
    [
        ("running", None, "made-up: running for "),
        ("ended", "interrupted", "made-up: interrupted; its last"),
        ("ended", "aborted", "made-up: stopped by faults in code; its last"),
        ("killed", None, "made-up: killed, for its last run has no end and no driver lives; its last"),
        ("not run", None, "made-up: not run yet"),
    ],
)
def test_every_state_has_its_words(storage: Path, state: str, ending: str | None, words: str) -> None:
    status = dataclasses.replace(read_status(str(storage / "made-up")), state=state, ending=ending)  # type: ignore[arg-type]
    assert words in shown(status)


def test_json_has_every_field_and_null_for_what_is_unknown(storage: Path) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(read_status(str(storage / "made-up")))))
    assert content.keys() == {
        "name", "place", "state", "ending", "num_runs", "started", "last_ended", "trials", "running", "num_waiting", "best",
        "slots", "waiting_share", "seconds_left", "confirmation", "stop_reason", "device_hours", "budget", "enqueued",
        "searches",
    }  # fmt: skip
    assert content["trials"] == {"planned": 76, "finished": 68, "pruned": 6, "failed": 2, "ended": 76}
    assert content["seconds_left"] is content["num_waiting"] is content["confirmation"] is None
    assert content["best"]["params"].keys() == {"backbone", "regulation.balance", "pretraining.epochs"}


def test_controls_with_searches_of_their_own_are_shown_beside_regulation(tmp_path: Path) -> None:
    config = made_up_config(num_trials=12, controls=(), controls_search="required")
    place = str(write_study(tmp_path, config, num_seeds=4))
    status = read_status(place)
    assert {search.control for search in status.searches} == {
        *("plain", "compute_matched", "ensemble", "untrained", "shuffled", "neutral")
    }
    assert {search.planned for search in status.searches} == {12}
    assert {search.control: search.ended for search in status.searches}["shuffled"] == 12
    found = r"searches of controls +trials +best validation accuracy\n +plain +2/12 +\d+\.\d %"
    assert re.search(found, shown(status)), shown(status)
    study = load_results(place)
    assert len(study.searched) == 12
    assert study.tuned.keys() == {(search.control, name) for search in status.searches for name in study.backbones}
    assert all(row.is_tuned for row in study.confirmed if row.control not in ("regulated", "emotional"))
    assert not any(row.is_tuned for row in study.same_settings)
    assert not any(verdict.premises for verdict in study.verdicts.values()), "the arms were tuned alike"
    console = Console(file=io.StringIO(), width=120, highlight=False)
    print_summary(study, console)
    print_confirmation(study, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"test_resnet +\d[^\n]*\nplain ", text)
    assert "Regulation beside its controls, each at its own best, on the test set" in text
    assert "emotional, not tuned" in text
    assert "The mechanism: controls at regulation's settings, on the test set" in text
    mechanism = answer.mechanism_table(study)
    assert mechanism is not None
    assert "nothing is claimed from this table" in mechanism.note


def test_a_report_says_what_it_concludes(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "FIGURES", {})  # which take most of its time, and are no part of what is printed
    other = str(write_study(tmp_path, made_up_config(name="other", num_trials=3, controls=()), num_seeds=0))
    print_report([str(storage / "made-up")], str(tmp_path / "one"), price_per_hour=None, images=False)
    text = capsys.readouterr().out
    assert f"test_vit ({UNTUNED}): helps: +" in text
    assert "2 of 76 trials failed and say nothing of their configuration: its worker died (2).\n" in text
    assert text.endswith(f"report:  {tmp_path / 'one' / 'index.html'}\n")
    print_report([str(storage / "made-up"), other], str(tmp_path / "two"), price_per_hour=None, images=False)
    text = capsys.readouterr().out
    assert f"made-up: test_resnet ({UNTUNED}): helps: +" in text
    assert "other: cannot be told: no confirmation yet. " in text


def test_why_there_are_no_images_is_said(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"cost": figures.FIGURES["cost"]})
    for name in ("PATH", "BROWSER_PATH"):
        monkeypatch.setenv(name, "/nowhere/chrome")
    print_report([str(storage / "made-up.confirm")], str(tmp_path), price_per_hour=None, images=True)
    assert "figures: Install Chrome or Chromium for PNG and SVG" in capsys.readouterr().out
