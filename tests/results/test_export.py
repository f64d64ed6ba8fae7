"""Which network is exported, and what its model card says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from scipy import stats

from emoreg.errors import ConfigError
from emoreg.results.export import find_trial, model_card
from emoreg.results.records import EvaluationRecord
from emoreg.results.statistics import share_interval
from emoreg.results.study import StudyResults, load_results
from tests.helpers.written import made_up_config, write_rows, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and its confirmation, whose confirmed trials were evaluated on two classes."""
    folder = write_study(tmp_path_factory.mktemp("runs"), made_up_config(num_trials=10), num_seeds=10)
    confirmed = folder.with_name("made-up.confirm")
    rows = [
        EvaluationRecord(
            identity=record.identity, split=split, class_name=name, num_images=40, num_predicted=predicted, num_correct=30
        )
        for record in load_results(confirmed).trials
        for split in ("validation", "test")
        for name, predicted in (("cat", 45), ("dog", 35))
    ]
    write_rows(confirmed, "evaluations", EvaluationRecord, rows)
    return folder


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyResults:
    return load_results(folder)


def test_the_best_is_that_of_the_search_over_all_backbones(study: StudyResults) -> None:
    home, record = find_trial(study, "best")
    assert home is study
    assert record.val_accuracy == max(row.val_accuracy or 0.0 for row in study.best.values())


def test_the_confirmed_one_is_chosen_without_the_test_set(study: StudyResults) -> None:
    home, record = find_trial(study, "confirmed")
    assert home is study.confirmation
    assert (record.role, record.control, record.seed) == ("confirm", "regulated", 1000)
    assert record.backbone == find_trial(study, "best")[1].backbone


def test_a_trial_goes_by_the_first_digits_of_its_identity(study: StudyResults) -> None:
    assert study.confirmation is not None
    for home in (study, study.confirmation):
        record = home.trials[0]
        assert find_trial(study, record.identity[:8]) == (home, record)
    for named in (record.identity[:3], "ffff" * 3):
        with pytest.raises(ConfigError, match=f"Copy a trial's identity .* {named!r} must name one trial"):
            find_trial(study, named)


def test_what_is_not_there_yet_is_asked_for(tmp_path: Path) -> None:
    empty = load_results(write_study(tmp_path, made_up_config(num_trials=0), num_seeds=0))
    with pytest.raises(ConfigError, match=r"Run the study first: .* no finished trial"):
        find_trial(empty, "best")
    with pytest.raises(ConfigError, match=r"Confirm the study first"):
        find_trial(empty, "confirmed")


def test_the_card_has_the_numbers_and_their_intervals(study: StudyResults) -> None:
    home, record = find_trial(study, "confirmed")
    lines = model_card(study, home, dataclasses.replace(record, val_accuracy=0.75, test_accuracy=0.75)).splitlines()
    low, high = (f"{100 * bound:.1f}" for bound in share_interval(0.75, 80))
    assert f"| validation accuracy | 75.0 % | {low} to {high} % | 80 |" in lines
    assert f"| test accuracy | 75.0 % | {low} to {high} % | 80 |" in lines
    (mean,) = [row.accuracy for row in study.confirmed if row.control == "regulated" and row.chosen.backbone == record.backbone]
    numbers = f"{100 * mean.mean:.1f} % | ± {100 * (mean.half_width or 0.0):.1f} points, over seeds | |"
    assert f"| test accuracy, mean of 10 seeds | {numbers}" in lines
    low, high = (f"{100 * bound:.1f}" for bound in share_interval(0.75, 40))
    assert f"| cat | 75.0 % | {low} to {high} % | 66.7 % | 40 |" in lines
    assert any(line.startswith("Confirmation: ") and "helps" in line for line in lines)
    assert any(f"trial {record.identity} (confirm), seed 1000" in line for line in lines)
    assert 'network = emoreg.load_network("this/folder")' in lines


def test_the_card_says_how_long_an_encoder_was_pretrained(study: StudyResults, tmp_path: Path) -> None:
    _, record = find_trial(study, "best")
    told = f"An encoder ({record.backbone}) was pre-trained on openmoji for {record.pretraining_epochs} epochs"
    assert f"{told}." in model_card(study, study, record)
    config = made_up_config(num_trials=3)
    pretraining = dataclasses.replace(config.trial.pretraining, cooldown_epochs=3)
    config = dataclasses.replace(config, trial=dataclasses.replace(config.trial, pretraining=pretraining))
    cooled = load_results(write_study(tmp_path, config, num_seeds=0))
    assert " epochs, and 3 more in which the learning rate went to 0." in model_card(cooled, *find_trial(cooled, "best"))


def test_the_card_of_the_best_says_that_it_was_selected(study: StudyResults) -> None:
    card = model_card(study, *find_trial(study, "best"))
    assert "| validation accuracy (selected: it flatters) |" in card
    assert "found by the search: regulation.balance " in card
    assert "## Classes" not in card, "nothing was evaluated by class"


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (30, 40), (1, 1000)])
def test_intervals_of_shares_are_wilson_s(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert share_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
