"""Proposals that are trained with several seeds, and count by their means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from optuna.trial import TrialState

from emoreg.config import Float, Objective, StudyConfig
from emoreg.config.resolved import resolve_trial
from emoreg.results.analysis import Tally, averaged, num_planned, ranked
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.tables import Records
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.reconcile import reconcile
from tests.helpers.studies import tiny_study
from tests.tuning.test_dispatcher import Search

SPACE = {"regulation.balance": Float(0.1, 0.9)}


def study(seeds: int, trials: int = 2, **changes: object) -> StudyConfig:
    return tiny_study(num_trials=trials, seeds_per_trial=seeds, controls=(), search_space=SPACE, **changes)


def run(search: Search, accuracies: list[list[float]]) -> list[tuple[int | None, int, str | None]]:
    """Run all of a search one after the other, with these accuracies by proposal and seed; number, seed and what it repeats."""
    order: list[tuple[int | None, int, str | None]] = []
    proposals: list[str] = []
    for name in map(str, range(100)):
        given = search.next(name)
        if given is None:
            break
        if given.repeats is None:
            proposals.append(given.trial.identity)
        seed = given.trial.config.seed
        order.append((given.number, seed, given.repeats))
        search.finish(name, accuracies[proposals.index(given.repeats or given.trial.identity)][seed])
    return order


def test_a_proposal_is_trained_with_each_seed_and_told_once_with_the_mean(tmp_path: Path) -> None:
    search = Search(study(3), tmp_path)
    order = run(search, [[0.5, 0.6, 0.7], [0.9, 0.3, 0.9]])
    first, second = (search.study.trials[number].user_attrs["identity"] for number in (0, 1))
    assert order == [(0, 0, None), (None, 1, first), (None, 2, first), (1, 0, None), (None, 1, second), (None, 2, second)]
    assert [trial.value for trial in search.study.trials] == [pytest.approx(0.6), pytest.approx(0.7)]
    assert search.study.trials[0].intermediate_values == {0: 0.5, 1: 0.6, 2: 0.7}
    assert search.is_done
    assert num_planned(search.config) == len(search.records.trials) == 6
    best, other = ranked(search.records.trials.values(), Objective())
    assert (best.identity, best.val_accuracy) == (second, pytest.approx(0.7)), "the best by its mean, not by its first seed"
    assert other.val_accuracy == pytest.approx(0.6)
    assert {row.sampled["regulation.balance"] for row in search.records.trials.values() if row.repeats == second} == {
        best.sampled["regulation.balance"]
    }


def test_one_that_is_worse_on_the_seeds_of_both_gets_no_more_of_them(tmp_path: Path) -> None:
    good, worse = [0.8, 0.81, 0.82, 0.83, 0.84, 0.85], [0.7, 0.71, 0.72, 0.73, 0.74, 0.75]
    search = Search(study(6), tmp_path)
    order = run(search, [good, worse])
    assert [seed for _, seed, _ in order] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3], "four seeds tell it: p = 1/16"
    told = search.study.trials[1]
    assert (told.state, told.value, told.user_attrs["seeds"]) == (TrialState.COMPLETE, pytest.approx(0.715), 4)
    assert search.is_done


@pytest.mark.parametrize("end", [EndReason.DIVERGED, EndReason.STOPPED_BY_SCHEDULER])
def test_one_whose_seed_ends_early_ends_so_itself(tmp_path: Path, end: EndReason) -> None:
    search = Search(study(3, trials=1), tmp_path)
    search.given("a")
    search.finish("a", 0.9)
    search.given("b")
    search.end("b", Outcome(end=end, message="so it is", val_accuracy=0.2, regulation_epochs=1))
    assert search.states == [TrialState.PRUNED]
    assert search.is_done
    assert not ranked(search.records.trials.values(), Objective()), "it has not finished"


def test_a_driver_that_was_killed_between_seeds_goes_on_with_the_next(tmp_path: Path) -> None:
    search = Search(study(3, trials=1), tmp_path)
    search.given("a")
    search.finish("a", 0.5)
    search.given("b")  # and is killed
    again = Search(study(3, trials=1), tmp_path)
    assert [again.given("c").trial.config.seed, again.dispatcher.num_running] == [1, 1]
    again.finish("c", 0.6)
    assert again.given("d").trial.config.seed == 2
    again.finish("d", 0.7)
    assert [trial.value for trial in again.study.trials] == [pytest.approx(0.6)]
    assert Search(study(3, trials=1), tmp_path).is_done, "nothing is missing"


def test_reconciling_knows_means_and_a_lost_history_gets_them_again(tmp_path: Path) -> None:
    config = study(3)
    search = Search(config, tmp_path)
    run(search, [[0.5, 0.6, 0.7], [0.9, 0.3, 0.9]])
    records = Records(tmp_path).trials
    done = reconcile(search.study, config, records, resolve_trial)
    assert (done.messages, done.reruns, done.renumbered) == ([], [], {})
    lost = open_study(config, tmp_path / "another")
    assert reconcile(lost, config, records, resolve_trial).messages == [
        "2 trials recorded, but not in Optuna's history (lost, or another storage): added to it"
    ]
    assert [trial.value for trial in lost.trials] == [pytest.approx(0.6), pytest.approx(0.7)]


def test_a_seed_that_the_machine_broke_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    config = study(2, trials=1)
    search = Search(config, tmp_path)
    search.given("a")
    search.finish("a", 0.5)
    search.given("b")
    search.end("b", Outcome(end=EndReason.INFRASTRUCTURE, message="its worker died"))
    assert search.states == [TrialState.FAIL]
    reconcile(search.study, config, search.records.trials, resolve_trial)
    again = Search(config, tmp_path)
    given = again.given("c")
    assert (given.trial.config.seed, given.repeats is None) == (1, False)
    again.finish("c", 0.7)
    assert again.states == [TrialState.FAIL, TrialState.COMPLETE]
    assert again.study.trials[1].value == pytest.approx(0.6)
    assert again.is_done


def test_the_best_so_far_follows_the_means(tmp_path: Path) -> None:
    search = Search(study(2), tmp_path)
    tally = Tally(Objective(), set())
    best = []
    for name, accuracy in zip("abcd", (0.9, 0.1, 0.6, 0.7), strict=True):
        given = search.given(name)
        search.finish(name, accuracy)
        tally.add(search.records.trials[given.trial.identity])
        assert tally.best is not None
        best.append((tally.best.number, round(tally.best.val_accuracy or 0, 3)))
    assert best == [(0, 0.9), (0, 0.5), (1, 0.6), (1, 0.65)]
    assert len(averaged(tally.trials)) == 2


def test_several_objectives_have_a_mean_each_and_nothing_is_spared(tmp_path: Path) -> None:
    objectives = (Objective(), Objective(metric="val_loss", mode="min"))
    search = Search(study(5, objectives=objectives), tmp_path)
    assert len(run(search, [[0.9] * 5, [0.1] * 5])) == 10
    assert [trial.values for trial in search.study.trials] == [[pytest.approx(0.9), 0.5], [pytest.approx(0.1), 0.5]]


def test_one_seed_is_as_ever(tmp_path: Path) -> None:
    search = Search(study(1), tmp_path)
    given = search.given("a")
    search.epoch("a", 1, 0.3)
    search.finish("a", 0.4)
    trial = search.study.trials[0]
    assert (given.repeats, trial.value, trial.intermediate_values) == (None, 0.4, {1: 0.3})
    assert "seeds" not in trial.user_attrs
    assert dataclasses.replace(search.config, seeds_per_trial=1) == search.config
