from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from emoreg.cli.summary import (
    exit_code,
    print_confirmation,
    print_confirmation_plan,
    print_places,
    print_plan,
    print_summary,
)
from emoreg.config import Choice, ConfirmationConfig, Objective, StudyConfig, control
from emoreg.config.controls import ON_LADDER
from emoreg.config.registry import CONTROLS
from emoreg.config.resolved import UNKNOWN
from emoreg.errors import Interrupted, StudyAborted
from emoreg.results.confirmation import UNTUNED
from emoreg.results.planning import choose, plan_trials
from emoreg.results.power import prospects
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults, load_results
from emoreg.results.tables import Records
from emoreg.tuning.confirm import ConfirmationPlan
from emoreg.tuning.manifest import provenance, write_manifest
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY, identity_of, tiny
from tests.helpers.written import made_up_config, write_study

PARAMS = {
    "backbone": "test_vit",
    "regulation.balance": 0.42200636748455544,
    "pretraining.optimizer.learning_rate": 0.00012345,
    "pretraining.epochs": 8,
}
BOTH = Choice(("test_vit", "test_resnet"))


def page(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, soft_wrap=True)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def results(study: StudyConfig, folder: Path, *trials: TrialRecord) -> StudyResults:
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(study, folder, UNKNOWN)
    records = Records(folder)
    for trial in trials:
        records.add_trial(trial)
    return load_results(folder)


def summary(study: StudyConfig, folder: Path, *trials: TrialRecord, width: int = 80) -> str:
    console = page(width)
    print_summary(results(study, folder, *trials), console)
    return text_of(console)


def controls(study: StudyConfig, accuracy: dict[str, float]) -> list[TrialRecord]:
    """As they may end: in another order."""
    trials = [trial for trial in study.control_trials() if trial.control in accuracy]
    return [ended(trial, role="control", accuracy=accuracy[trial.control] + 0.01 * trial.seed) for trial in reversed(trials)]


def test_the_answer_of_two_backbones(tmp_path: Path) -> None:
    study = tiny_study(search_space={"backbone": BOTH}, controls=("regulated", "plain", "untrained"), control_seeds=(0, 1))
    text = summary(
        study,
        tmp_path,
        *controls(study, {"regulated": 0.80, "plain": 0.70, "untrained": 0.85}),
        ended(tiny(seed=7), accuracy=0.9, params={"backbone": "test_resnet", "regulation.balance": 0.1}),
        ended(tiny(seed=8, backbone="test_vit"), accuracy=0.3, params=PARAMS),
    )
    lines = [line.split() for line in text.splitlines()]
    rows = [line for line in lines if len(line) > 1 and line[0].startswith("test_") and "seeds" not in line]
    assert [line[:2] for line in rows] == [
        ["test_vit", "30.0"],
        ["test_resnet", "90.0"],
        *(
            [backbone, name]
            for backbone in ("test_vit", "test_resnet")
            for name in ("regulation", "plain", "untrained", "best")
        ),
    ]
    plain = next(line for line in text.splitlines() if "plain" in line)
    assert "70.5 ± 6.4" in plain
    assert "+10.0 ± 0.0" in plain
    assert "-5.0 ± 0.0" in next(line for line in text.splitlines() if "untrained" in line)
    assert "selected, of seed 0 alone, so its accuracy flatters" in text
    assert "95 % confidence over seeds" in text
    assert text.splitlines()[-4:] == [
        f"records:      {tmp_path / 'records'}",
        f"report:       emoreg report {tmp_path}  (one HTML file, with every figure)",
        f"TensorBoard:  emoreg tensorboard {tmp_path}",
        "next:         emoreg confirm STUDY  (the answer, on the test set)",
    ]


@pytest.mark.parametrize(
    ("uri", "reported"),
    [("/runs/mine.confirm", "/runs/mine"), ("s3://bucket/mine.confirm?region=x", "'s3://bucket/mine?region=x'")],
)
def test_a_confirmation_is_reported_with_its_study(uri: str, reported: str) -> None:
    console = page()
    print_places(uri, console)
    assert text_of(console).splitlines()[1] == f"report:       emoreg report {reported}  (one HTML file, with every figure)"


def test_parameters_stand_whole_at_80_columns(tmp_path: Path) -> None:
    text = summary(tiny_study(), tmp_path, ended(accuracy=0.3, params=PARAMS))
    assert re.search(r" regulation\.balance 0\.422\s", text)
    assert "pretraining.epochs 8" in text
    assert re.search(r" pretraining\.optimizer\. *\n +learning_rate 0\.000123 *\n", text), "a long path is folded at a dot"
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)
    wide = summary(tiny_study(), tmp_path, ended(accuracy=0.3, params=PARAMS), width=100)
    assert "pretraining.optimizer.learning_rate 0.000123" in wide


def test_one_seed_is_told_to_tell_nothing(tmp_path: Path) -> None:
    study = tiny_study()
    text = summary(study, tmp_path, *controls(study, {"regulated": 0.8, "plain": 0.7}))
    assert "One seed tells nothing about chance: add some with --control-seeds 0 1 2." in text
    assert "No trial of the search has finished." in text
    assert "best of the search" not in text
    assert "±" not in text


def test_several_objectives_show_their_front(tmp_path: Path) -> None:
    study = tiny_study(objectives=(Objective(), Objective(metric="device_seconds", mode="min")))
    trials = [ended(tiny(seed=seed), accuracy=a, seconds=s) for seed, (a, s) in enumerate([(0.9, 9), (0.5, 1), (0.4, 2)])]
    text = summary(study, tmp_path, *trials)
    assert "Pareto front of the search in val_accuracy and device_seconds" in text
    assert [trial.identity in text for trial in trials] == [True, True, False]


def test_failures_are_shown_as_they_are_and_end_with_1(tmp_path: Path) -> None:
    found = results(tiny_study(), tmp_path, ended(status="failed", message="OSError: [Errno 28] no space"))
    console = page()
    print_summary(found, console)
    assert f"failed: trial {identity_of(TINY)}: OSError: [Errno 28] no space" in text_of(console)
    assert exit_code(found, None, "emoreg run mine.py", console) == 1


def test_how_a_run_ended_is_its_exit_code(tmp_path: Path) -> None:
    found, console = results(tiny_study(), tmp_path, ended()), page()
    assert exit_code(found, None, "emoreg run mine.py", console) == 0
    assert not text_of(console)
    assert exit_code(found, Interrupted("stopped"), "emoreg run mine.py", console) == 130
    assert text_of(console) == "Interrupted: run the same command again to go on.\n  emoreg run mine.py\n"
    reason = "before its 8 hours were over (budget.hours)"
    begun = Records(tmp_path).begin_run(provenance(tiny_study(), None))
    Records(tmp_path).add_run(dataclasses.replace(begun, ending="interrupted", stop_reason=reason))
    told = Interrupted(f"Run study 'tiny' again to go on: it stopped {reason}")
    assert exit_code(results(tiny_study(), tmp_path), told, "emoreg run mine.py", console) == 130
    assert text_of(console).endswith(f"\n{told}\n  emoreg run mine.py\n")
    assert exit_code(found, StudyAborted("Mend the fault"), "emoreg run mine.py", console) == 1
    assert text_of(console).endswith("Mend the fault\n  emoreg run mine.py\n")


def test_the_plan(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONTROLS, "_entries", dict(CONTROLS._entries))
    monkeypatch.setattr(CONTROLS, "_origins", dict(CONTROLS._origins))

    @control("of_this_test")
    def _(trial: object) -> object:  # type: ignore[arg-type]
        return trial

    study = tiny_study(
        storage=str(storage),
        trial=tiny(pretraining__cooldown_epochs=3),
        objectives=(Objective(metric="val_loss", mode="min"),),
        controls=("regulated", "plain", "wide"),
    )
    study = dataclasses.replace(study, search_space={"regulation.kind": Choice(("fixed", "learnable")), **study.search_space})
    console = page()
    print_plan("mine.py", study, console)
    text = text_of(console)
    settings = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert settings["trial.regulation.balance"] == ["0.5", "(searched)"]
    assert settings["trial.pretraining.optimizer.learning_rate"] == ["0.001"]
    assert settings["objectives.0.metric"] == ["val_loss"]
    assert settings["controls"] == ["regulated", "plain", "wide"]
    assert settings["regulation.balance"] == ["real", "in", "[0.1,", "0.9]"]
    assert settings["combinations"] == ["infinitely", "many"]
    assert " ".join(settings["trials"]).startswith("3 of the search + 3 controls, ")
    assert " ".join(settings["learned"]).startswith("balance from 0.5 to 0.41 or 0.59 at most: AdamW moves its logit by up")
    shared = "pre-training shared: a longer one continues a shorter one, up to its cool-down of 3 epochs trials"
    assert shared in " ".join(text.split())
    assert settings["registered"] == ["control", "of_this_test"], "by the study's file"
    assert "of waiting, nothing stopped early" in " ".join(text.split())
    disk = r"disk networks 2\.9 MiB, checkpoints of running trials [\d.]+ MiB, experiences [\d.]+ MiB, at most; image sets 1\.3"
    assert re.search(disk, " ".join(text.split()))
    measured = (
        r"measured test_resnet [\d,]+ images/s, test_resnet of width 2 [\d,]+ images/s for a training step of one encoder"
    )
    assert re.search(measured, " ".join(text.split()))
    assert "Study 'tiny' (mine.py)" in text
    assert "…" not in text


def test_what_a_confirmation_fixes(tmp_path: Path) -> None:
    config = made_up_config(num_trials=4)
    searched = load_results(write_study(tmp_path, config, num_seeds=0)).by_identity
    searched |= {"opened": dataclasses.replace(ended(role="trial"), test_accuracy=0.5)}
    chosen = choose(config, searched.values(), 1)
    trials = plan_trials(config, chosen, [1000, 1001], images=lambda *_: 100)
    plan = ConfirmationPlan(
        config=config,
        asked=ConfirmationConfig(),
        trials=trials,
        searched=searched,
        prospects=prospects(chosen, [*searched.values()], ON_LADDER, 0.5),
        expected_seconds=100.0,
        num_task_images={"digits": 1400},
        test_splits=(),
    )
    console = page(width=100)
    print_confirmation_plan(config.name, plan, console)
    text = text_of(console)
    assert "Chosen of 'made-up', on validation" in text
    chosen = {found.identity for found, _ in trials}
    assert all(identity in text for identity in chosen)
    controls = "regulation, plain, compute_matched, ensemble, emotional, untrained, shuffled, neutral"
    assert f"{8 * 2 * len(chosen)} trials: {controls}, on seeds 1000 to 1001. About " in text
    assert "They train on the whole training split, or a subset of num_images (1,400 images of digits)" in text
    assert "The search has one cut of the images: what cuts of each seed's own add is not in it." in text
    assert "The test set has been opened by 1 trial of the study already" in text
    assert "If regulation is 0.5 points above every control, the chance to show it on 2 seeds" in text
    assert re.search(r"test_vit +\d\.\d\d \(\d\.\d\d\) +0 % \(0 %\) +0 % \(0 %\) +\d\d \(over 100\)", text), text
    assert "The ladder has 5 rungs here." in text
    console = page(width=100)
    print_confirmation_plan(config.name, dataclasses.replace(plan, prospects={}), console)
    assert "is not known: only controls on several seeds tell how far gains vary" in text_of(console)


def test_what_a_confirmation_has_found(tmp_path: Path) -> None:
    write_study(tmp_path, made_up_config(num_trials=4), num_seeds=10)
    console = page()
    print_confirmation(load_results(tmp_path / "made-up.confirm"), console)
    text = text_of(console)
    assert "Regulation beside its controls, on the test set" in text
    assert "Gains are paired by seed." in text
    assert re.search(rf"^test_\w+ \({UNTUNED}\): helps", text, re.MULTILINE), text
    assert f"report:       emoreg report {tmp_path / 'made-up'}  (one HTML" in text
    assert max(len(line) for line in text.splitlines() if line.startswith(("test_vit  ", "backbone", "Regulation"))) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_page(width: int, tmp_path: Path) -> None:
    study = tiny_study(controls=("regulated", "plain", "emotional", "untrained", "shuffled"), control_seeds=(0, 1, 2))
    accuracy = dict.fromkeys(study.controls, 0.5)
    text = summary(study, tmp_path, *controls(study, accuracy), ended(tiny(seed=9), params=PARAMS), width=width)
    told = [line for line in text.splitlines() if str(tmp_path) not in line and not line.startswith(("best of", "next:", "±:"))]
    assert max(map(len, told)) <= width
