"""``emoreg enqueue``, ``emoreg stop --trial`` and ``--fixed``, as a user types them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from emoreg.cli.main import main
from emoreg.results.requests import enqueued
from emoreg.storage.files import Files
from tests.helpers.studies import study_file
from tests.helpers.written import made_up_config, write_study

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no Ray: what starts it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emoreg.tuning.study.ray_session", None)
    monkeypatch.setattr("emoreg.tuning.private_ray.private_ray", lambda *settings, **named: nullcontext())
    return tmp_path


def emoreg_(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0), *capsys.readouterr()


def test_a_trial_of_a_study_that_has_not_run_is_enqueued_by_its_file(here: Path, capsys: Output) -> None:
    code, out, err = emoreg_(capsys, "enqueue", study_file(here), "regulation.balance=0.3", "pretraining.epochs=2")
    assert (code, err) == (0, "")
    assert out == (
        "study 'tiny': enqueued regulation.balance=0.3, pretraining.epochs=2; the next trial of its search has these values\n"
    )
    (trial,) = enqueued(Files(str(here / "runs" / "tiny")))
    assert trial.params == {"regulation.balance": 0.3, "pretraining.epochs": 2}


def test_one_of_a_study_that_was_run_by_its_name_or_its_folder(here: Path, capsys: Output) -> None:
    write_study(here / "runs", made_up_config(num_trials=2), num_seeds=0)
    for number, reference in enumerate(("made-up", "runs/made-up"), start=1):
        assert emoreg_(capsys, "enqueue", reference, f"regulation.balance=0.{number}")[0] == 0
    assert len(enqueued(Files("runs/made-up"))) == 2
    assert "enqueued  regulation.balance=0.1\n" in emoreg_(capsys, "status", "made-up")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("regulation.balance=1.5",), "emoreg: Choose a number in [0.1, 0.9]: regulation.balance must be a value that is "),
        (("regulation.ballance=0.5",), "emoreg: Name a path such as regulation.balance"),
        (("0.5",), "emoreg: Write PATH=VALUE, as in regulation.balance=0.3: "),
        ((), "emoreg: Choose a value, as in regulation.balance=...: "),
    ],
)
def test_what_could_not_be_tried_is_one_message_and_code_2(
    arguments: tuple[str, ...], told: str, here: Path, capsys: Output
) -> None:
    code, out, err = emoreg_(capsys, "enqueue", study_file(here), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(told)
    assert err.count("\n") == 1
    assert not (here / "runs").exists()


def test_what_is_no_study_is_said_as_everywhere(here: Path, capsys: Output) -> None:
    code, _, err = emoreg_(capsys, "enqueue", "nowhere", "regulation.balance=0.5")
    assert code == 2
    assert err.startswith("emoreg: Give --storage, or the study's folder: ")
    (here / "broken.py").write_text("1 / 0\n")
    assert "Correct the study 'broken.py', which fails" in emoreg_(capsys, "enqueue", "broken.py", "a=1")[2]


def test_a_trial_that_does_not_run_is_not_stopped(here: Path, capsys: Output) -> None:
    write_study(here / "runs", made_up_config(num_trials=2), num_seeds=0)
    code, out, err = emoreg_(capsys, "stop", "made-up", "--trial", "3f2a")
    assert (code, out) == (2, "")
    assert err.startswith("emoreg: Name a trial that runs now, of which there are none: ")


def test_what_is_fixed_stays_in_the_search_space_and_is_shown_and_the_last_word_s_url_is_not(
    here: Path, storage: Path, capsys: Output
) -> None:
    fixed = ("--fixed", "regulation.balance=0.3", "pretraining.epochs=1")
    notify = ("--notify", "https://hooks.example.com/services/T0/hush")
    code, out, err = emoreg_(capsys, "show", study_file(here), "--storage", str(storage), *fixed, *notify)
    assert (code, err) == (0, "")
    assert "https://hooks.example.com/***" in out
    assert "hush" not in out
    assert "regulation.balance=0.3 pretraining.epochs=1" in " ".join(out.split())
    assert "regulation.balance" in out.split("Search space")[1]
    code, _, err = emoreg_(capsys, "show", study_file(here), "--fixed", "regulation.balance=0.95")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("emoreg: Choose a number in [0.1, 0.9]: regulation.balance must be a value that is searched")
