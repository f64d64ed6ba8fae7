"""What runs next and what Optuna is told, against Optuna's real storages; and the same inside Ray's real Tune."""

from __future__ import annotations

import errno
import json
import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from emoreg.config import (
    Choice,
    Distribution,
    ExperienceConfig,
    Float,
    Int,
    Objective,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    When,
    replace_paths,
)
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.errors import ConfigError
from emoreg.results.outcome import EndReason, Outcome, PretrainingCost
from emoreg.results.records import EpochRecord, Role, TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.tuning.dispatcher import Dispatcher
from emoreg.tuning.inbox import Inbox
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.queue import Job
from emoreg.tuning.reconcile import reconcile
from emoreg.tuning.retry import RetryPolicy
from emoreg.tuning.source import OptunaSource
from emoreg.tuning.tune_results import (
    EVENT,
    TrialEnded,
    TrialSaved,
    epoch_result,
    last_result,
)

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)
BALANCE: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0)}
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid", "qmc", "nsga2")
MANY = 1000
"""Slots of a cluster that never is what a trial waits for."""


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """``optuna_storage``: each test that takes it holds for both, unless it says in which it looks."""
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/optuna.db"


def study_config(
    space: Mapping[str, Distribution] = BALANCE, *, sampler: Any = "random", seed: int = 0, **kwargs: Any
) -> StudyConfig:
    """A study whose trials neither wait for each other's pre-training nor come again, unless a test asks for it."""
    settings = {
        "num_trials": 4,
        "experience": ExperienceConfig(share=False),
        "resources": ResourcesConfig(max_retries=0),
        **kwargs,
    }
    return StudyConfig(search_space=space, sampler=SamplerConfig(name=sampler, seed=seed, num_startup_trials=3), **settings)


class Alone:
    """The coordinator of a study that has one driver, without a study's folder."""

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def claim(self, identity: str) -> bool:
        return True

    def release(self, identity: str) -> None:
        pass

    def others_changed(self) -> bool:
        return False


def record(trial: TrialConfig | ResolvedTrial, end: EndReason = EndReason.COMPLETED, **changes: Any) -> TrialRecord:
    """The record of a trial with accuracy 0.75 after two epochs, unless ``changes`` of its outcome say otherwise."""
    trial = trial if isinstance(trial, ResolvedTrial) else resolve_trial(trial)
    measured: dict[str, Any] = {"val_accuracy": 0.75, "val_loss": 0.5, "regulation_epochs": 2, "regulation_seconds": 2.0}
    message = None if end is EndReason.COMPLETED else "because"
    outcome = Outcome(end=end, message=message, pretraining=PretrainingCost(paid_seconds=1.0), **{**measured, **changes})
    return TrialRecord.of(trial, outcome, role="search", number=0, params={}, device="CPU", started="")


class Search:
    """A study's search, driven as ``TuneBridge`` does it: a record is written, then the dispatcher is told."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        *,
        records: tuple[TrialRecord, ...] = (),
        controls: tuple[TrialConfig, ...] = (),
        jobs: tuple[Job, ...] = (),
        coordinator: Any = None,
        is_lost: Any = lambda node_id: False,
        clock: Any = None,
        all_records: Records | None = None,
    ) -> None:
        self.config = config
        self.study = open_study(config, folder)
        self.records = all_records or Records(folder)
        for row in records:
            self.records.add_trial(row)
        coordinator = coordinator or Alone()
        self.messages: list[str] = []
        self.repeats: list[tuple[str, int]] = []
        source = OptunaSource(
            self.study,
            config,
            resolved=resolve_trial,
            records=self.records.trials,
            coordinator=coordinator,
            inbox=Inbox(Files(str(folder))),
            notify=self.messages.append,
            on_repeat=lambda job: self.repeats.append((job.identity, job.number)),
        )
        self.source = source
        self.dispatcher = Dispatcher(
            config,
            source,
            self.records,
            coordinator,
            retry=RetryPolicy(config.resources, is_lost),
            jobs=(*(Job(trial=resolve_trial(control), role="control") for control in controls), *jobs),
            **({} if clock is None else {"clock": clock}),
        )
        self._given: dict[str, Job] = {}

    def next(self, trial_id: str, *, slots: int = MANY, node: str = "node") -> Job | None:
        """The next job, which runs on a node at once."""
        given = self.dispatcher.next(trial_id, slots=slots)
        if given is not None:
            self._given[trial_id] = given
            self.dispatcher.placed(trial_id, node)
        return given

    def given(self, trial_id: str, **kwargs: Any) -> Job:
        given = self.next(trial_id, **kwargs)
        assert given is not None
        return given

    def epoch(self, trial_id: str, number: int, accuracy: float, stage: Any = "regulation") -> None:
        self.dispatcher.epoch(trial_id, epoch_row(number, accuracy, stage))

    def end(self, trial_id: str, outcome: Outcome) -> None:
        given = self._given[trial_id]
        self.records.add_trial(
            TrialRecord.of(
                given.trial,
                outcome,
                role=given.role,
                number=given.number,
                params=given.params,
                repeats=given.repeats,
                device="CPU",
                started="",
            )
        )
        self.dispatcher.end(trial_id, outcome)

    def finish(self, trial_id: str, accuracy: float, *, loss: float = 0.5, seconds: float = 3.0) -> None:
        self.end(trial_id, completed(accuracy, loss=loss, seconds=seconds))

    def stop(self, trial_id: str, epoch: int = 0, accuracy: float | None = None) -> None:
        """A scheduler stops a trial after an epoch."""
        message = f"stopped by the scheduler {self.config.scheduler.name}"
        end = EndReason.STOPPED_BY_SCHEDULER
        self.end(trial_id, Outcome(end=end, message=message, val_accuracy=accuracy, regulation_epochs=epoch))

    def broke(self, trial_id: str) -> None:
        """The machine breaks a trial, which then is begun again or fails."""
        if not self.dispatcher.broke(trial_id):
            self.end(trial_id, Outcome(end=EndReason.INFRASTRUCTURE, message="its worker died"))

    @property
    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.study.trials]

    @property
    def is_done(self) -> bool:
        return self.dispatcher.is_done


def completed(accuracy: float, *, loss: float = 0.5, seconds: float = 3.0) -> Outcome:
    return Outcome(
        end=EndReason.COMPLETED, val_accuracy=accuracy, val_loss=loss, regulation_epochs=3, regulation_seconds=seconds
    )


def diverged(epochs: int = 1, accuracy: float | None = None) -> Outcome:
    return Outcome(
        end=EndReason.DIVERGED,
        message="the loss of regulation is not finite at step 7",
        val_accuracy=accuracy,
        regulation_epochs=epochs,
        regulation_seconds=1.0,
        diverged_stage="regulation",
        diverged_step=7,
    )


def epoch_row(number: int, accuracy: float, stage: Any = "regulation") -> EpochRecord:
    return EpochRecord(
        identity="",
        stage=stage,
        epoch=number,
        step=number,
        train_loss=1.0,
        train_accuracy=0.0,
        val_loss=1 - accuracy,
        val_accuracy=accuracy,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=1.0,
        measured_balance=0.5,
        measured_balance_std=0.0,
    )


def epoch(number: int, accuracy: float, stage: Any = "regulation", role: Role = "search") -> dict[str, Any]:
    return epoch_result(epoch_row(number, accuracy, stage), role=role, num_epochs=3)


def test_results_carry_the_metrics_and_what_schedulers_compare() -> None:
    first = epoch(1, 0.25)
    assert first == {EVENT: epoch_row(1, 0.25), "metric/val_accuracy": 0.25, "metric/val_loss": 0.75, "regulation_epoch": 1}
    assert "regulation_epoch" not in epoch(3, 0.25), "the last epoch is compared through the last result"
    assert "regulation_epoch" not in epoch(1, 0.25, role="control"), "controls are not stopped"
    assert epoch(1, 0.25, stage="pretraining").keys() == {EVENT}
    end = TrialEnded(completed(0.5, loss=1.0, seconds=9.0))
    assert last_result(end, role="search") == {
        EVENT: end,
        "regulation_epoch": 3,
        "metric/val_accuracy": 0.5,
        "metric/val_loss": 1.0,
        "metric/device_seconds": 9.0,
    }
    assert last_result(end, role="control")["regulation_epoch"] == 0
    for event in (TrialEnded(diverged()), TrialSaved()):
        last = last_result(event, role="search", metrics=("val_f1",))
        assert last["regulation_epoch"] == 0
        assert math.isnan(last["metric/val_accuracy"])
        assert math.isnan(last["metric/val_f1"])
    assert last_result(TrialEnded(diverged()), role="search")["metric/device_seconds"] == 1.0


def test_tells_every_ending_as_it_was(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, num_trials=6, scheduler=SchedulerConfig(name="asha"))
    search = Search(config, tmp_path)
    given = [search.given(str(number)) for number in range(6)]
    assert search.next("more") is None
    assert not search.is_done  # one of them may be broken and come again
    assert [(entry.number, entry.role) for entry in given] == [(number, "search") for number in range(6)]
    for entry in given:
        assert entry.trial.config.regulation.balance == entry.params["regulation.balance"]
    for number in range(6):
        search.epoch(str(number), 1, 0.9, stage="pretraining")
        search.epoch(str(number), 1, 0.25)
    search.finish("0", 0.75)
    search.epoch("1", 2, 0.375)
    search.stop("1", 2, 0.375)
    search.epoch("2", 2, math.nan)
    search.end("2", diverged(2, math.nan))
    search.broke("3")
    search.finish("4", math.nan)
    search.stop("5", 1, 0.25)
    assert search.states == [COMPLETE, PRUNED, PRUNED, FAIL, FAIL, PRUNED]
    assert [trial.value for trial in search.study.trials] == [0.75, 0.375, None, None, None, 0.25]
    intermediate = [trial.intermediate_values for trial in search.study.trials]
    assert [list(values) for values in intermediate] == [[1], [1, 2], [1, 2], [1], [1], [1]]
    assert math.isnan(intermediate[2][2])
    assert (intermediate[0], intermediate[1]) == ({1: 0.25}, {1: 0.25, 2: 0.375})
    attributes = [trial.user_attrs for trial in search.study.trials]
    assert [entry["identity"] for entry in attributes] == [entry.trial.identity for entry in given]
    assert {entry["seed"] for entry in attributes} == {0}
    assert attributes[1]["reason"] == "stopped by the scheduler asha"
    assert (attributes[2]["diverged_stage"], attributes[2]["diverged_step"]) == ("regulation", 7)
    assert attributes[3]["reason"] == "its worker died"
    assert "not a finite number" in attributes[4]["reason"]


def test_an_attempt_that_reports_an_epoch_again_does_not_warn(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=1), tmp_path)
    search.given("a")
    for number in (1, 2, 1, 2):
        search.epoch("a", number, 0.25 * number)
    search.finish("a", 0.75)
    assert search.study.trials[0].intermediate_values == {1: 0.25, 2: 0.5}


def test_goes_on_where_the_last_driver_stopped(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, num_trials=5)
    before = Search(config, tmp_path)
    first, second, third = (before.given(str(number)) for number in range(3))
    before.finish("0", 0.5)
    before.epoch("1", 1, 0.25)
    # The driver dies here: trial 2 has been recorded but not told, trial 1 was running.
    after = Search(config, tmp_path, records=(record(third.trial),))
    assert after.states == [COMPLETE, RUNNING, COMPLETE]
    assert after.given("x") == second
    after.epoch("x", 1, 0.25)
    after.finish("x", 0.625)
    rest = [after.given(str(number)) for number in range(2)]
    for number in range(2):
        after.finish(str(number), 0.5)
    assert after.next("more") is None
    assert after.is_done
    told = [(trial.number, trial.value) for trial in after.study.trials]
    assert told == [(0, 0.5), (1, 0.625), (2, 0.75), (3, 0.5), (4, 0.5)]
    balances = [entry.params["regulation.balance"] for entry in (first, second, third, *rest)]
    assert len(set(balances)) == 5, "a search taken up again must not propose the same points"


def test_a_driver_killed_between_ask_and_the_last_parameter_leaves_nothing_running(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    config = study_config(space, num_trials=1)
    killed = open_study(config, tmp_path).ask()
    balance = killed.suggest_float("regulation.balance", 0.0, 1.0)
    search = Search(config, tmp_path)
    given = search.given("a")
    assert given.number == 0
    assert given.params.keys() == space.keys()
    assert given.params["regulation.balance"] == balance
    search.finish("a", 0.5)
    assert search.states == [COMPLETE]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_same_seed_same_search(sampler: str, tmp_path: Path) -> None:
    def balances(folder: Path, seed: int) -> list[float]:
        search = Search(study_config(sampler=sampler, seed=seed, num_trials=6), folder)
        points = []
        for number in range(6):
            points.append(float(search.given(str(number)).params["regulation.balance"]))
            search.finish(str(number), points[-1])
        return points

    one, same, other = balances(tmp_path / "a", 1), balances(tmp_path / "b", 1), balances(tmp_path / "c", 2)
    assert one == same
    assert not set(one) & set(other)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_taken_up_again_proposes_what_it_would_have(sampler: str, tmp_path: Path) -> None:
    """It is killed after each trial, and within every other one, which is taken up."""
    space: dict[str, Distribution] = {"regulation.balance": Choice((0.25, 0.5, 0.75)), "pretraining.epochs": Choice((1, 2, 3))}
    if sampler != "grid":
        space = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    num_trials = 7
    config = study_config(space, sampler=sampler, num_trials=num_trials)

    def found(folder: Path, *, is_killed: bool) -> list[dict[str, Any]]:
        search, points = Search(config, folder), []
        for number in range(num_trials):
            if is_killed and number % 2:
                search.next("running")
                search = Search(config, folder)
            given = search.next(str(number))
            if given is None:  # some samplers repeat good values, which are not run again
                break
            points.append(dict(given.params))
            search.finish(str(number), float(given.params["regulation.balance"]))
            if is_killed:
                search = Search(config, folder)
        return points

    undisturbed = found(tmp_path / "undisturbed", is_killed=False)
    assert len(undisturbed) >= 5
    assert found(tmp_path / "killed", is_killed=True) == undisturbed


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc"])  # gp and nsga2 repeat good values, rightly
def test_a_search_taken_up_again_goes_on_to_new_points(sampler: str, tmp_path: Path) -> None:
    space: dict[str, Distribution] = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    points = set()
    for num_trials in (4, 6, 8):
        search = Search(study_config(space, sampler=sampler, num_trials=num_trials), tmp_path)
        for number in range(num_trials - len(points)):
            points.add(search.given(str(number)).params["regulation.balance"])
            search.finish(str(number), 0.5)
        assert len(points) == num_trials


def test_no_more_run_at_once_than_asked(tmp_path: Path) -> None:
    config = study_config(num_trials=3, resources=ResourcesConfig(max_retries=1, retry_seconds=0.0, max_concurrent=1))
    search = Search(config, tmp_path)
    search.given("0")
    assert search.next("1") is None
    search.broke("0")
    assert search.given("0 again").attempts == 2
    search.finish("0 again", 0.5)
    for number in ("1", "2"):
        search.given(number)
        search.finish(number, 0.5)
    assert search.states == [COMPLETE] * 3


def test_beyond_the_slots_one_trial_waits_for_a_place_and_no_more_are_proposed(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=9), tmp_path)
    given = [search.dispatcher.next(name, slots=2) for name in "abc"]
    assert given[2] is None, "the second has no worker yet"
    search.dispatcher.placed("a", "node")
    search.dispatcher.placed("b", "node")
    assert search.dispatcher.next("c", slots=2) is not None, "it waits in Tune, and starts as soon as a slot is free"
    assert search.dispatcher.next("d", slots=2) is None
    assert len(search.study.trials) == 3


CONDITIONAL: dict[str, Distribution] = {
    "regulation.kind": Choice(("fixed", "learnable")),
    "regulation.balance": Float(0.25, 0.75, step=0.25, when=When("regulation.kind", ("fixed",))),
    "pretraining.epochs": Int(1, 4),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_valid_configurations(sampler: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    num_trials = 16 if sampler == "grid" else 10  # the grid begins with one kind
    config = study_config(CONDITIONAL, sampler=sampler, num_trials=num_trials)
    search = Search(config, tmp_path)
    kinds = set()
    number = 0
    while (given := search.next(str(number))) is not None:
        trial, params = given.trial.config, given.params
        kinds.add(trial.regulation.kind)
        assert ("regulation.balance" in params) == (trial.regulation.kind == "fixed")
        assert trial.regulation.balance in (0.25, 0.5, 0.75)
        assert params["pretraining.epochs"] == trial.pretraining.epochs in range(1, 5)
        search.finish(str(number), trial.regulation.balance)
        number += 1
    assert search.is_done
    assert search.states == [COMPLETE] * num_trials
    assert kinds == {"fixed", "learnable"}
    assert capfd.readouterr().err == ""


def test_grid_runs_each_combination_once_over_several_drivers(storage: str | None, tmp_path: Path) -> None:
    seen = []
    space = {**CONDITIONAL, "pretraining.epochs": Int(1, 2)}
    for num_trials in (3, 3, 100, 100):
        config = study_config(space, sampler="grid", num_trials=num_trials, optuna_storage=storage)
        search = Search(config, tmp_path)
        while (given := search.next(str(len(seen)))) is not None:
            search.finish(str(len(seen)), 0.5)
            seen.append(json.dumps(dict(given.params)))
    assert len(seen) == len(set(seen)) == 3 * 2 + 2
    assert search.states == [COMPLETE] * 8
    assert search.is_done


def test_recorded_trials_are_told_and_not_run(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"regulation.balance": Choice((0.1, 0.2, 0.3, 0.4))}
    config = study_config(space, sampler="grid", num_trials=4)
    trials = {balance: replace_paths(config.trial, {"regulation.balance": balance}) for balance in (0.1, 0.2, 0.3, 0.4)}
    stopped = EndReason.STOPPED_BY_SCHEDULER
    rows = (
        record(trials[0.1]),
        record(trials[0.2], stopped, val_accuracy=0.25),
        record(trials[0.3], EndReason.INFRASTRUCTURE, val_accuracy=None),
        record(trials[0.4], stopped, val_accuracy=None, regulation_epochs=0),
    )
    search = Search(config, tmp_path, records=rows)
    assert search.given("a").params == {"regulation.balance": 0.3}, "only what failed is run again"
    search.finish("a", 0.5)
    assert search.next("more") is None
    assert search.is_done
    assert search.states == [COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert [trial.value for trial in search.study.trials] == [0.75, 0.25, 0.5, None]
    assert search.study.trials[1].intermediate_values == {2: 0.25}
    assert search.study.trials[1].user_attrs["reason"] == "because"


@pytest.mark.parametrize("ending", ["finished", "stopped", "broken"])
def test_a_twin_of_a_running_trial_ends_as_that_one(ending: str, tmp_path: Path) -> None:
    search = Search(study_config({"regulation.balance": Choice((0.5,))}, num_trials=3), tmp_path)
    assert search.given("a").number == 0
    assert search.next("b") is None
    assert search.states == [RUNNING] * 3
    search.epoch("a", 1, 0.25)
    match ending:
        case "finished":
            search.finish("a", 0.5)
        case "stopped":
            search.stop("a", 1, 0.25)
        case "broken":
            search.broke("a")
    expected = {"finished": (COMPLETE, 0.5), "stopped": (PRUNED, 0.25), "broken": (FAIL, None)}[ending]
    assert [(trial.state, trial.value) for trial in search.study.trials] == [expected] * 3
    assert [trial.intermediate_values for trial in search.study.trials] == [{1: 0.25}] * 3


def test_controls_come_first_and_stay_outside_the_history(tmp_path: Path) -> None:
    config = study_config({"regulation.balance": Choice((0.5,))}, num_trials=1)
    same = config.trial  # balance 0.5: what the search proposes too
    plain, untrained = (TrialConfig(control=control) for control in ("plain", "untrained"))
    search = Search(config, tmp_path, records=(record(untrained),), controls=(same, plain, plain, untrained))
    first = search.given("a")
    assert first == Job(trial=resolve_trial(same), role="control")
    assert search.given("b").trial == resolve_trial(plain)
    assert len(search.study.trials) == 0
    assert search.next("c") is None
    assert search.states == [RUNNING], "the search's only point is running as a control"
    search.finish("b", 0.25)
    assert search.states == [RUNNING]
    search.finish("a", 0.5)
    assert [(trial.state, trial.value) for trial in search.study.trials] == [(COMPLETE, 0.5)]
    assert search.repeats == [(first.trial.identity, 0)], "the control's record gets the search's number"


def test_invalid_proposals_fail_with_the_rule_and_do_not_count(tmp_path: Path) -> None:
    # Each value is valid by itself, but deterministic trials refuse bf16.
    space: dict[str, Distribution] = {"deterministic": Choice((True, False)), "precision": Choice(("bf16", "float32"))}
    search = Search(study_config(space, sampler="grid", num_trials=4), tmp_path)
    numbers = [search.given(str(number)).number for number in range(3)]
    assert numbers == [1, 2, 3]
    assert search.next("more") is None
    assert search.study.trials[0].state == FAIL
    assert "precision must not be mixed" in search.study.trials[0].user_attrs["invalid"]


def test_trials_that_would_wait_for_pretraining_are_held_back_and_others_go_first(tmp_path: Path) -> None:
    # Two shared runs, one a batch size; the control's length is the trial's own, 10.
    space: dict[str, Distribution] = {
        "pretraining.epochs": Choice((2, 4)),
        "pretraining.batch_size": Choice((32, 64)),
        **BALANCE,
    }
    config = study_config(space, num_trials=40, sampler="tpe", experience=ExperienceConfig())
    search = Search(config, tmp_path, controls=(config.trial, TrialConfig(control="plain")))
    ask = partial(search.next, slots=3)
    control = ask("control")
    assert control is not None
    assert control.trial == resolve_trial(config.trial)
    plain = ask("plain")
    assert plain is not None
    assert plain.trial.config.control == "plain"  # needs no pre-training
    trainers = [search.given(name, slots=3).trial.config.pretraining.batch_size for name in "01"]
    assert sorted(trainers) == [32, 64], "each shared run has one trainer"
    assert ask("x") is None
    assert search.dispatcher.num_waiting == 3
    asked = len(search.study.trials)
    assert ask("x") is None
    assert len(search.study.trials) == asked, "Optuna is asked for no more than may wait"
    search.epoch("0", 4, 0.0, stage="pretraining")
    search.epoch("1", 4, 0.0, stage="pretraining")
    assert all(ask(f"go {number}") is not None for number in range(20)), "the experiences are there"
    assert search.dispatcher.num_waiting == 0


def test_a_sampler_that_does_not_learn_is_asked_for_as_many_as_it_takes_to_find_one_that_can_start(tmp_path: Path) -> None:
    space = {"pretraining.batch_size": Choice((32, 64)), "pretraining.epochs": Choice((1, 2, 3, 4, 5))}
    search = Search(study_config(space, sampler="grid", num_trials=10, experience=ExperienceConfig()), tmp_path)
    started = [search.given(name, slots=1).trial.config.pretraining for name in "ab"]
    assert [(stage.batch_size, stage.epochs) for stage in started] == [(32, 1), (64, 1)]
    assert search.next("c") is None
    assert search.dispatcher.num_waiting == 8


def test_pretraining_that_is_done_lets_the_others_go(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=3, experience=ExperienceConfig()), tmp_path)
    search.given("a")
    assert search.next("b") is None
    search.dispatcher.experience_ready("a")
    search.given("b")
    search.given("c")


def test_a_trial_that_the_machine_broke_comes_again_after_a_pause_and_then_fails(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=2, retry_seconds=10.0))
    now = 0.0
    search = Search(config, tmp_path, clock=lambda: now)
    first = search.given("a")
    for attempt, pause in ((2, 10.0), (3, 20.0)):
        assert search.dispatcher.broke("a")
        now += pause - 0.1
        assert search.next("a") is None
        now += 0.1
        again = search.given("a")
        assert (again.trial, again.attempts) == (first.trial, attempt)
    assert search.states == [RUNNING]
    assert not search.dispatcher.broke("a")
    search.end("a", Outcome(end=EndReason.INFRASTRUCTURE, message="again"))
    assert search.next("a") is None
    assert search.is_done
    assert search.states == [FAIL]


def test_a_lost_machine_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=1, retry_seconds=0.0))
    lost: set[str] = set()
    search = Search(config, tmp_path, is_lost=lost.__contains__)
    for attempt in range(1, 6):
        assert search.given(f"{attempt}", node=f"{attempt}").attempts == attempt
        if attempt % 2:
            lost.add(f"{attempt}")  # known at once
        search.broke(f"{attempt}")
        lost.add(f"{attempt}")  # or found out before it begins again
    search.given("6")
    search.broke("6")
    search.given("7")
    assert search.states == [RUNNING]
    search.broke("7")
    assert search.states == [FAIL]


@pytest.mark.parametrize(
    ("number", "has_one_disk", "comes_again"),
    [
        *((number, True, False) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)),
        *((number, True, True) for number in (errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, None)),
        (errno.ENOSPC, False, True),
    ],
)
def test_a_trial_that_met_a_sick_disk_comes_again_only_where_there_is_another(
    number: int | None, has_one_disk: bool, comes_again: bool
) -> None:
    policy = RetryPolicy(ResourcesConfig(max_retries=2, retry_seconds=0.0), has_one_disk=has_one_disk)
    job = Job(trial=resolve_trial(study_config().trial), role="search", node_id="node")
    assert (policy.pause(job, number) is not None) == comes_again


def test_a_trial_that_loses_every_machine_has_an_end(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=1), tmp_path, is_lost=lambda node_id: True)
    attempts = 0
    while search.next(f"{attempts}") is not None:
        search.broke(f"{attempts}")
        attempts += 1
    assert attempts == 100
    assert search.states == [FAIL]


def test_a_proposal_found_invalid_by_a_killed_driver_does_not_make_room_for_another(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"deterministic": Choice((True,)), "precision": Choice(("bf16", "float32"))}
    config = study_config(space, sampler="grid", num_trials=1)
    study = open_study(config, tmp_path)
    study.enqueue_trial({"deterministic": True, "precision": "bf16"})
    killed = study.ask()
    for path, distribution in space.items():
        assert isinstance(distribution, Choice)
        killed.suggest_categorical(path, distribution.values)
    killed.set_user_attr("invalid", "a rule")  # and the driver dies before it tells
    search = Search(config, tmp_path)
    search.given("a")
    search.finish("a", 0.5)
    assert search.next("b") is None
    assert search.is_done
    assert search.states.count(COMPLETE) == 1
    assert RUNNING not in search.states


def test_a_fault_in_code_fails_at_once(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=1, resources=ResourcesConfig(max_retries=5)), tmp_path)
    search.given("a")
    search.end("a", Outcome(end=EndReason.CODE_ERROR, message="TypeError: no"))
    assert search.next("b") is None
    assert search.states == [FAIL]
    assert search.study.trials[0].user_attrs["reason"] == "TypeError: no"


def test_a_trial_that_was_saved_unfinished_goes_on_the_next_time(tmp_path: Path) -> None:
    config = study_config(num_trials=3)
    search = Search(config, tmp_path)
    left = search.given("a")
    search.dispatcher.saved("a")
    assert not search.is_done
    assert search.states == [RUNNING]
    after = Search(config, tmp_path)
    assert after.given("x") == left
    assert [after.given(name).number for name in "yz"] == [1, 2]


def test_a_study_whose_last_trial_was_saved_is_not_done(tmp_path: Path) -> None:
    search = Search(study_config(num_trials=1), tmp_path)
    search.given("a")
    search.dispatcher.saved("a")
    assert not search.dispatcher.has_work, "the next run takes it up"
    assert not search.is_done


def test_what_optuna_knows_and_the_records_do_not_is_run_again_and_not_told_again(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    before = Search(config, tmp_path / "a")
    given = before.given("a")
    before.finish("a", 0.5)
    (rerun,) = reconcile(before.study, config, {}, resolve_trial).reruns
    job = Job(trial=given.trial, role="search", number=rerun.number, params=rerun.params)
    (tmp_path / "a" / "records" / "trials.parquet").unlink()
    search = Search(config, tmp_path / "a", jobs=(job,))
    assert search.dispatcher.has_work
    assert search.given("b") == given
    search.finish("b", 0.25)
    assert search.next("c") is None
    assert search.is_done
    assert [(trial.state, trial.value) for trial in search.study.trials] == [(COMPLETE, 0.5)]


def test_a_space_without_a_valid_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Distribution] = {"deterministic": Choice((True, False)), "precision": Choice(("bf16", "float32"))}
    search = Search(study_config(space), tmp_path)
    fixed = {"deterministic": True, "precision": "bf16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.PartialFixedSampler(fixed, optuna.samplers.RandomSampler())
    monkeypatch.setattr("emoreg.tuning.source.sampler_of", lambda *_: sampler)
    with pytest.raises(ConfigError, match=r"100 proposals in a row were not"):
        search.next("a")
    assert search.states == [FAIL] * 100


@pytest.mark.parametrize(("sampler", "storage"), [("tpe", "sqlite"), ("nsga2", "journal")], indirect=["storage"])
def test_several_objectives(sampler: str, storage: str | None, tmp_path: Path) -> None:
    objectives = (Objective(), Objective(metric="device_seconds", mode="min"))
    config = study_config(sampler=sampler, num_trials=8, objectives=objectives, optuna_storage=storage)
    search = Search(config, tmp_path)
    assert [direction.name for direction in search.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    for number in range(5):
        search.given(str(number))
        search.epoch(str(number), 1, 0.5)
        search.finish(str(number), number / 10, seconds=5.0 - number)
    for number in range(5, 8):
        search.given(str(number))
    search.stop("5", 1, 0.5)
    search.broke("6")
    search.finish("7", math.nan)
    assert search.states == [COMPLETE] * 5 + [PRUNED, FAIL, FAIL]
    assert [trial.number for trial in search.study.best_trials] == [4]
    assert search.study.metric_names == ["val_accuracy", "device_seconds"]


def test_a_user_s_enqueued_trial_goes_first(tmp_path: Path) -> None:
    config = study_config()
    open_study(config, tmp_path).enqueue_trial({"regulation.balance": 0.125})
    assert Search(config, tmp_path).given("a").params == {"regulation.balance": 0.125}


class Drivers:
    """Several drivers of one study in one process; ``die`` ends one as kill -9 would. Each has its coordinator."""

    def __init__(self, config: StudyConfig, folder: Path, controls: tuple[TrialConfig, ...] = ()) -> None:
        self._config, self._folder, self._controls = config, folder, controls
        self._holders: dict[str, str] = {}
        self.records = Records(folder)
        self.now = 0.0

    def begin(self, name: str) -> Search:
        holders, drivers = self._holders, self

        class Together:
            next_look = 5.0

            def turn(self) -> AbstractContextManager[None]:
                return nullcontext()

            def claim(self, identity: str) -> bool:
                return holders.setdefault(identity, name) == name

            def release(self, identity: str) -> None:
                if holders.get(identity) == name:
                    del holders[identity]

            def others_changed(self) -> bool:
                if drivers.now < self.next_look:
                    return False
                self.next_look = drivers.now + 5.0
                return True

        return Search(
            self._config,
            self._folder,
            controls=self._controls,
            coordinator=Together(),
            clock=lambda: self.now,
            all_records=self.records,
        )

    def die(self, name: str) -> None:
        for key in [key for key, holder in self._holders.items() if holder == name]:
            del self._holders[key]

    @property
    def held(self) -> set[str]:
        return set(self._holders)


# The grid's points are kept in the storage; tpe's first ones are random.
@pytest.mark.parametrize(("sampler", "storage"), [("grid", "sqlite"), ("tpe", "journal")], indirect=["storage"])
def test_two_drivers_propose_and_run_each_trial_once(sampler: str, storage: str | None, tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0, step=0.1)}
    config = study_config(optuna_storage=storage, space=space, sampler=sampler, num_trials=6)
    control = replace_paths(config.trial, {"control": "plain"})
    drivers = Drivers(config, tmp_path, (control,))
    searches = {name: drivers.begin(name) for name in ("a", "b")}
    given: list[tuple[str, str]] = []
    for turn in range(40):
        name = "ab"[turn % 2]
        if searches[name].next(f"{name}{turn}") is not None:
            given.append((name, f"{name}{turn}"))
        if turn % 3 == 2 and given:
            name, trial_id = given.pop(0)
            searches[name].finish(trial_id, 0.75)
        drivers.now += 6.0
        if all(search.is_done for search in searches.values()):
            break
    assert [search.next("more") for search in searches.values()] == [None, None]
    assert all(search.is_done for search in searches.values())
    assert resolve_trial(control).identity in drivers.records.trials
    found = open_study(config, tmp_path).trials
    assert [trial.state for trial in found] == [COMPLETE] * 6
    assert not drivers.held


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)  # as of all studies with several drivers, a database
def test_what_a_dead_driver_was_running_is_run_by_another_and_what_it_recorded_is_told(
    storage: str | None, tmp_path: Path
) -> None:
    config = study_config(optuna_storage=storage, num_trials=3)
    drivers = Drivers(config, tmp_path)
    first, second = drivers.begin("first"), drivers.begin("second")
    recorded, lost = first.given("a"), first.given("b")
    second.given("c")
    assert second.next("d") is None, "the other driver lives"
    drivers.records.add_trial(record(recorded.trial))  # then it was killed
    drivers.now += 6.0
    assert second.next("d") is None
    drivers.die("first")
    drivers.now += 6.0
    assert second.given("d").trial == lost.trial
    second.finish("d", 0.75)
    assert second.next("e") is None
    second.finish("c", 0.75)
    assert second.next("e") is None
    assert second.is_done
    assert [trial.state for trial in open_study(config, tmp_path).trials] == [COMPLETE] * 3
    assert not drivers.held


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_proposal_that_another_driver_is_running_gets_its_result(storage: str | None, tmp_path: Path) -> None:
    one: dict[str, Distribution] = {"regulation.balance": Choice((0.5,))}
    config = study_config(optuna_storage=storage, space=one, num_trials=2)
    drivers = Drivers(config, tmp_path)
    first, second = drivers.begin("first"), drivers.begin("second")
    first.given("a")
    assert second.next("b") is None
    first.finish("a", 0.75)
    drivers.now += 6.0
    assert second.next("b") is None
    assert second.is_done
    study = open_study(config, tmp_path)
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.75)] * 2
