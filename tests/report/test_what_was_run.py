"""The box that every report begins with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emoreg.config import Choice, PretrainingConfig, RegulationConfig
from emoreg.report import write_report
from emoreg.report.what_was_run import configuration, facts
from emoreg.results.study import load_results
from tests.helpers.written import made_up_config, write_study

CONFIG = made_up_config(num_trials=8)


def test_the_box_says_all_that_the_numbers_need(tmp_path: Path) -> None:
    found = dict(facts(load_results(write_study(tmp_path, CONFIG, num_seeds=8))))
    assert found["Task"] == "digits, 10 classes or targets: 600 images trained on, 60 for validation, 300 in the test split"
    assert found["Stimuli"].startswith("openmoji, 10 classes or targets: 600 images")
    assert "Neutral images" not in found, "the study's file does not count them"
    assert found["Images"] == "32 pixels square"
    assert found["Backbones"] == "test_resnet, test_vit, from random weights"
    assert found["Pre-training"].startswith("epochs whole in [2, 32], logarithmic (searched; 10 as configured), batches of 128")
    assert "adamw at 0.001, weight decay 0.05, cosine learning rate" in found["Regulation"]
    assert "kind learnable, balance real in [0.05, 0.95] (searched; 0.5 as configured)" in found["Regulation"]
    assert found["Seeds"] == "search: 0, controls: 0 to 2, confirmation: 1000 to 1007, on the test split"
    assert found["Confirmed on"].startswith(
        "the whole training split of the task, or a subset of num_images (digits: 600 images)"
    )
    assert "2 runs, on CPU" in found["Run"], "the study's, and its confirmation's"
    assert "reconstruction" in found["Method"]


def test_a_cooldown_is_told(tmp_path: Path) -> None:
    trial = dataclasses.replace(CONFIG.trial, pretraining=PretrainingConfig(epochs=7, cooldown_epochs=3))
    study = load_results(write_study(tmp_path, dataclasses.replace(CONFIG, trial=trial), num_seeds=0))
    assert dict(facts(study))["Pre-training"].endswith("constant learning rate; then a cool-down to 0, epochs 3")
    assert "cool-down" not in dict(facts(load_results(write_study(tmp_path / "other", CONFIG, num_seeds=0))))["Pre-training"]


def test_a_kind_without_a_balance_is_given_none(tmp_path: Path) -> None:
    trial = dataclasses.replace(CONFIG.trial, regulation=RegulationConfig(kind="random", epochs=5))
    config = dataclasses.replace(CONFIG, trial=trial, search_space={"backbone": Choice(("test_resnet", "test_vit"))})
    study = load_results(write_study(tmp_path, config, num_seeds=0))
    assert "balance" not in dict(facts(study))["Regulation"]


def test_the_page_has_the_box_first_and_every_setting_folded(tmp_path: Path) -> None:
    folder = write_study(tmp_path, CONFIG, num_seeds=0)
    rows = dict(rows for _, group in configuration(load_results(folder)).groups for rows in group)
    assert rows["regulation.optimizer.learning_rate"] == "0.001"
    page = write_report([folder], images=False).read_text()
    assert page.index("What was run") < page.index("The answer")
    assert "<details><summary>Every setting, as configured</summary>" in page
