"""Trials that somebody wants first, values that somebody fixes, and a trial that somebody stops, against real Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emoreg.config import Choice, Float, Value, When, resolve_trial
from emoreg.config.search_space import grid
from emoreg.errors import ConfigError
from emoreg.results.requests import ask_to_stop, asked_to_stop, enqueue, enqueued
from emoreg.storage.files import Files
from emoreg.tracking.observer import RunStatus
from emoreg.tuning.inbox import Inbox
from emoreg.tuning.observers import TrialStopper
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.signals import Stop
from tests.helpers.studies import ended
from tests.tuning.test_dispatcher import COMPLETE, RUNNING, WAITING, Search, study_config

SPACE = {"regulation.balance": Float(0.0, 1.0), "drop_path": Float(0.0, 0.5)}


def ask_first(folder: Path, config: Any, **values: Value) -> None:
    enqueue(Files(str(folder)), config, {name.replace("__", "."): value for name, value in values.items()})


def waiting(folder: Path) -> list[Any]:
    return [dict(trial.params) for trial in enqueued(Files(str(folder)))]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "qmc", "nsga2"])
def test_an_enqueued_trial_is_the_next_and_the_sampler_proposes_the_rest(sampler: str, tmp_path: Path) -> None:
    config = study_config(SPACE, sampler=sampler, num_trials=3)
    ask_first(tmp_path, config, regulation__balance=0.25)
    search = Search(config, tmp_path)
    first = search.given("a")
    assert first.params["regulation.balance"] == 0.25
    assert 0.0 <= first.params["drop_path"] <= 0.5
    assert waiting(tmp_path) == []
    search.finish("a", 0.5)
    assert search.given("b").params["regulation.balance"] != 0.25
    search.finish("b", 0.5)
    search.given("c")
    search.finish("c", 0.5)
    assert search.next("d") is None
    assert search.is_done, "it counted as one of the three"


def test_trials_enqueued_while_the_study_runs_come_in_their_order_even_after_the_last(tmp_path: Path) -> None:
    config = study_config(SPACE, num_trials=1)
    search = Search(config, tmp_path)
    search.source._inbox = Inbox(Files(str(tmp_path)), clock=iter(range(1000)).__next__)  # each look is a new one
    search.given("a")
    for balance in (0.25, 0.75):
        ask_first(tmp_path, config, regulation__balance=balance)
    assert not search.is_done
    assert [search.given(name).params["regulation.balance"] for name in "bc"] == [0.25, 0.75]
    for name in "abc":
        search.finish(name, 0.5)
    assert search.is_done
    assert search.states == [COMPLETE] * 3


def test_a_finished_study_takes_up_what_was_enqueued_since(tmp_path: Path) -> None:
    config = study_config(SPACE, num_trials=1)
    search = Search(config, tmp_path)
    search.given("a")
    search.finish("a", 0.5)
    assert not Search(config, tmp_path).dispatcher.has_work
    ask_first(tmp_path, config, regulation__balance=0.25)
    again = Search(config, tmp_path)
    assert again.dispatcher.has_work
    assert again.given("b").params["regulation.balance"] == 0.25


@pytest.mark.parametrize("killed_after", ["enqueued", "asked"])
def test_a_driver_killed_on_the_way_neither_loses_an_enqueued_trial_nor_runs_it_twice(
    killed_after: str, tmp_path: Path, storage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_config(SPACE, num_trials=2, optuna_storage=storage)
    ask_first(tmp_path, config, regulation__balance=0.25)

    class Killed(Exception):
        pass

    def kill(*_: Any) -> Any:
        raise Killed

    search = Search(config, tmp_path)
    target = (search.study, "ask") if killed_after == "enqueued" else (search.source._inbox, "remove")
    monkeypatch.setattr(*target, kill)
    with pytest.raises(Killed):
        search.next("a")
    assert search.states == [WAITING if killed_after == "enqueued" else RUNNING]
    assert len(waiting(tmp_path)) == 1
    again = Search(config, tmp_path)
    params = [again.given(name).params["regulation.balance"] for name in "ab"]
    assert params.count(0.25) == 1
    assert again.next("c") is None
    assert waiting(tmp_path) == []


def test_a_request_that_cannot_be_removed_is_run_once_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = study_config(SPACE, num_trials=1)
    ask_first(tmp_path, config, regulation__balance=0.25)

    def refuse(self: Files, name: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Files, "remove", refuse)
    for _ in range(2):
        search = Search(config, tmp_path)
        if search.next("a") is not None:
            search.finish("a", 0.5)
        assert search.next("b") is None
        assert search.is_done
    assert search.states == [COMPLETE]
    assert "is done, and cannot be removed: [Errno 13] Permission denied" in caplog.text


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/optuna.db"


def test_what_the_study_does_not_search_any_more_is_left_out_and_said(tmp_path: Path) -> None:
    ask_first(tmp_path, study_config(SPACE), regulation__balance=0.9)
    search = Search(study_config(SPACE | {"regulation.balance": Float(0.0, 0.5)}), tmp_path)
    assert search.given("a").params["regulation.balance"] <= 0.5
    assert search.messages[0].startswith(
        "A trial that was enqueued is left out, for the study has changed since: Choose a number"
    )
    assert waiting(tmp_path) == []


def test_what_breaks_a_rule_with_what_the_sampler_proposes_is_said(tmp_path: Path) -> None:
    space = {"deterministic": Choice((True, False)), "precision": Choice(("bf16",))}
    config = study_config(space)
    ask_first(tmp_path, config, deterministic=True)
    search = Search(config, tmp_path)
    assert search.given("a").params == {"deterministic": False, "precision": "bf16"}
    (message,) = {message.partition(":")[0] for message in search.messages}
    assert message == "A trial that was enqueued is left out, with what the sampler proposed beside it"


def test_a_grid_goes_on_behind_an_enqueued_trial(tmp_path: Path) -> None:
    space = {"regulation.balance": Choice((0.25, 0.5, 0.75))}
    config = study_config(space, sampler="grid", num_trials=3)
    ask_first(tmp_path, config, regulation__balance=0.75)
    search = Search(config, tmp_path)
    given = []
    for name in "abc":
        trial = search.next(name)
        if trial is not None:
            given.append(trial.params["regulation.balance"])
            search.finish(name, 0.5)
    assert given == [0.75, 0.25, 0.5]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "qmc", "nsga2"])
def test_what_is_fixed_is_no_more_searched_and_the_rest_is(sampler: str, tmp_path: Path) -> None:
    before = study_config(SPACE, sampler=sampler, num_trials=5)
    search = Search(before, tmp_path)
    for number in range(5):
        search.given(str(number))
        search.finish(str(number), number / 10)
    after = study_config(SPACE, sampler=sampler, num_trials=8, fixed={"regulation.balance": "0.25"})
    assert after.fixed == {"regulation.balance": 0.25}
    search = Search(after, tmp_path)
    while search.next("one") is not None:  # a sampler may propose one again, which is not run
        search.finish("one", 0.5)
    params = [trial.params for trial in search.study.trials[5:]]
    assert [found["regulation.balance"] for found in params] == [0.25] * 3
    assert len({found["drop_path"] for found in params}) > 1
    assert search.states == [COMPLETE] * 8


def test_a_grid_runs_the_combinations_that_have_what_is_fixed(tmp_path: Path) -> None:
    space = {
        "backbone": Choice(("test_resnet", "test_vit")),
        "drop_path": Choice((0.0, 0.1), when=When("backbone", ("test_vit",))),
        "regulation.balance": Choice((0.25, 0.75)),
    }
    config = study_config(space, sampler="grid", num_trials=100, fixed={"drop_path": 0.1, "regulation.balance": 0.25})
    assert len(grid(space, config.trial)) == 6
    search = Search(config, tmp_path)
    given = []
    for name in "abcdef":
        trial = search.next(name)
        if trial is not None:
            given.append(trial.params)
            search.finish(name, 0.5)
    assert given == [
        {"backbone": "test_resnet", "regulation.balance": 0.25},
        {"backbone": "test_vit", "drop_path": 0.1, "regulation.balance": 0.25},
    ]
    assert search.is_done


def test_what_is_fixed_may_be_changed_while_the_study_keeps_its_name(tmp_path: Path) -> None:
    open_study(study_config(SPACE), tmp_path)
    open_study(study_config(SPACE, fixed={"drop_path": 0.1}), tmp_path)
    with pytest.raises(ConfigError, match=r"^Choose a number in \[0, 0.5\]: drop_path must be a value that is searched"):
        study_config(SPACE, fixed={"drop_path": 0.7})


class Signal:
    """A stop signal without a cluster."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def set(self, identity: str | None = None) -> None:
        self.told.append(identity)


def test_a_trial_that_is_to_stop_is_told_once_and_forgotten_when_it_has_ended(tmp_path: Path) -> None:
    files, config, stop, signal = Files(str(tmp_path)), study_config(SPACE), Stop(), Signal()
    row = ended(config.trial)
    status: Any = RunStatus(run=None, num_running=1, num_waiting=0, trials={"old": row}, num_planned=3)  # type: ignore[arg-type]
    for identity in ("old", row.identity):
        ask_to_stop(files, config, [identity], identity)
    stopper = TrialStopper(files, stop, signal, clock=iter(range(1000)).__next__)  # type: ignore[arg-type]
    stopper.on_run_start(status)
    assert asked_to_stop(files) == {row.identity}
    for _ in range(3):
        stopper.on_tick(status)
    assert signal.told == [row.identity]
    assert stop.trials == {row.identity}
    assert not stop.is_asked, "the others go on"
    stopper.on_end(resolve_trial(config.trial), row)
    assert asked_to_stop(files) == frozenset()
    stopper.on_stopping()
    assert signal.told == [row.identity, None], "now all"
