"""The searcher against Optuna's real storages, driven in Tune's order of calls, and inside Ray's real Tune."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
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
from emoreg.config.search_space import resolve
from emoreg.errors import ConfigError, Diverged
from emoreg.results.records import EpochRecord, Role, TrialRecord
from emoreg.tuning.messages import (
    EXPERIENCED,
    FAULT,
    REGULATION_EPOCH,
    STATUS,
    epoch_result,
    last_result,
    metric_key,
    unfinished_result,
)
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.reconcile import reconcile
from emoreg.tuning.searcher import OptunaSearcher

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)
BALANCE: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0)}
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid", "qmc", "nsga2")


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """``optuna_storage``: each test that takes it holds for both."""
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/optuna.db"


def study_config(
    space: Mapping[str, Distribution] = BALANCE, *, sampler: Any = "random", seed: int = 0, **kwargs: Any
) -> StudyConfig:
    """A study whose trials neither wait for each other's pre-training nor come again, but where a test asks for it."""
    settings = {
        "num_trials": 4,
        "experience": ExperienceConfig(share=False),
        "resources": ResourcesConfig(max_retries=0),
        **kwargs,
    }
    return StudyConfig(search_space=space, sampler=SamplerConfig(name=sampler, seed=seed, num_startup_trials=3), **settings)


def open_searcher(
    config: StudyConfig, folder: Path, records: Mapping[str, TrialRecord] | None = None, controls: tuple[TrialConfig, ...] = ()
) -> tuple[optuna.Study, OptunaSearcher]:
    study = open_study(config, folder)
    return study, OptunaSearcher(study, config, controls=controls, records={} if records is None else records)


def record(config: TrialConfig, status: Any = "finished", **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "identity": config.identity,
        "role": "search",
        "number": 0,
        "control": config.control,
        "status": status,
        "reason": None if status == "finished" else "because",
        "seed": config.seed,
        "backbone": config.backbone,
        "stimuli": config.stimuli.name,
        "task": config.task.name,
        "form": config.regulation.form,
        "kind": config.regulation.kind,
        "balance": config.regulation.balance,
        "pretraining_epochs": 1,
        "params": "{}",
        "config": "{}",
        "accuracy": 0.75,
        "loss": 0.5,
        "measured_balance": 0.5,
        "test_accuracy": None,
        "regulation_epochs": 2,
        "num_parameters": 1,
        "pretraining_seconds": 1.0,
        "experience_seconds": 0.0,
        "regulation_seconds": 2.0,
        "waiting_seconds": 0.0,
        "device_seconds": 3.0,
        "micro_batch_size": None,
        "recomputed": False,
        "attempts": 1,
        "log_tail": None,
        "device": "cpu",
        "started": "",
        "ended": "",
    }
    return TrialRecord(**{**fields, **changes})


def epoch(number: int, accuracy: float, stage: Any = "regulation", role: Any = "search") -> dict[str, Any]:
    row = EpochRecord(
        identity="",
        stage=stage,
        epoch=number,
        step=number,
        loss=1.0,
        accuracy=0.0,
        val_loss=1 - accuracy,
        val_accuracy=accuracy,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=1.0,
        balance=0.5,
        balance_std=0.0,
    )
    return epoch_result(row, role=role, num_epochs=3)


def finish(searcher: OptunaSearcher, trial_id: str, accuracy: float, *, loss: float = 0.5, device_seconds: float = 3.0) -> None:
    result = last_result(role="search", epochs=3, accuracy=accuracy, loss=loss, device_seconds=device_seconds)
    searcher.on_trial_result(trial_id, result)
    searcher.on_trial_complete(trial_id, {**result, "done": True})


def suggested(searcher: OptunaSearcher, trial_id: str) -> dict[str, Any]:
    given = searcher.suggest(trial_id)
    assert isinstance(given, dict), given
    return given


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def test_results_carry_the_metrics_and_what_schedulers_compare() -> None:
    assert (STATUS, REGULATION_EPOCH) == ("status", "regulation_epoch")
    first = epoch(1, 0.25)
    assert first["metric/accuracy"] == 0.25
    assert first["metric/loss"] == 0.75
    assert (first["regulation_epoch"], first["epoch"], first["stage"]) == (1, 1, "regulation")
    assert "regulation_epoch" not in epoch(3, 0.25), "the last epoch is compared through the last result"
    assert "regulation_epoch" not in epoch(1, 0.25, role="control"), "controls are not stopped"
    assert not {"metric/accuracy", "metric/loss", "regulation_epoch"} & epoch(1, 0.25, stage="pretraining").keys()
    assert last_result(role="search", epochs=3, accuracy=0.5, loss=1.0, device_seconds=9.0) == {
        "status": "finished",
        "regulation_epoch": 3,
        "metric/accuracy": 0.5,
        "metric/loss": 1.0,
        "metric/device_seconds": 9.0,
    }
    assert last_result(role="control", epochs=3, accuracy=0.5, loss=1.0, device_seconds=9.0)["regulation_epoch"] == 0
    diverged = last_result(
        role="search", epochs=3, accuracy=None, loss=None, device_seconds=9.0, diverged=Diverged("regulation", 7)
    )
    assert math.isnan(diverged.pop("metric/accuracy"))
    assert math.isnan(diverged.pop("metric/loss"))
    assert diverged == {
        "status": "diverged",
        "regulation_epoch": 0,
        "metric/device_seconds": 9.0,
        "diverged_stage": "regulation",
        "diverged_step": 7,
    }


def test_tells_every_ending_as_it_was(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, num_trials=6, scheduler=SchedulerConfig(name="asha"))
    study, searcher = open_searcher(config, tmp_path)
    given = [suggested(searcher, str(number)) for number in range(6)]
    assert searcher.suggest("more") is None  # one of them may be broken and come again
    assert [(entry["number"], entry["role"]) for entry in given] == [(number, "search") for number in range(6)]
    for entry in given:
        assert entry["trial"].regulation.balance == entry["params"]["regulation.balance"]
    for number in range(6):
        searcher.on_trial_result(str(number), epoch(1, 0.9, stage="pretraining"))
        searcher.on_trial_result(str(number), epoch(1, 0.25))
    finish(searcher, "0", 0.75)
    searcher.on_trial_complete("1", epoch(2, 0.375))  # stopped at this result: Tune gives it here and nowhere else
    searcher.on_trial_result("2", epoch(2, math.nan))
    gone = last_result(role="search", epochs=1, accuracy=None, loss=None, device_seconds=1, diverged=Diverged("regulation", 7))
    searcher.on_trial_complete("2", gone)
    searcher.on_trial_complete("3", error=True)
    finish(searcher, "4", math.nan)
    searcher.on_trial_complete("5", None)  # stopped while it waited
    assert states(study) == [COMPLETE, PRUNED, PRUNED, FAIL, FAIL, PRUNED]
    assert [trial.value for trial in study.trials] == [0.75, 0.375, None, None, None, 0.25]
    intermediate = [trial.intermediate_values for trial in study.trials]
    assert [list(values) for values in intermediate] == [[1], [1, 2], [1, 2], [1], [1], [1]]
    assert math.isnan(intermediate[2][2])
    assert (intermediate[0], intermediate[1]) == ({1: 0.25}, {1: 0.25, 2: 0.375})
    attributes = [trial.user_attrs for trial in study.trials]
    assert [entry["identity"] for entry in attributes] == [entry["trial"].identity for entry in given]
    assert {entry["seed"] for entry in attributes} == {0}
    assert attributes[1]["reason"] == "stopped by the scheduler asha"
    assert (attributes[2]["diverged_stage"], attributes[2]["diverged_step"]) == ("regulation", 7)
    assert attributes[3]["reason"].startswith("broken by the machine on every attempt")
    assert "not a finite number" in attributes[4]["reason"]


def test_a_trial_that_finished_is_not_failed_by_what_comes_after(tmp_path: Path) -> None:
    study, searcher = open_searcher(study_config(num_trials=1), tmp_path)
    suggested(searcher, "a")
    searcher.on_trial_result("a", last_result(role="search", epochs=3, accuracy=0.5, loss=1.0, device_seconds=1.0))
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("a", error=True)
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.5)]


def test_an_attempt_that_reports_an_epoch_again_does_not_warn(tmp_path: Path) -> None:
    study, searcher = open_searcher(study_config(num_trials=1), tmp_path)
    suggested(searcher, "a")
    for number in (1, 2, 1, 2):
        searcher.on_trial_result("a", epoch(number, 0.25 * number))
    finish(searcher, "a", 0.75)
    assert study.trials[0].intermediate_values == {1: 0.25, 2: 0.5}


def test_goes_on_where_the_last_driver_stopped(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, num_trials=5)
    _, before = open_searcher(config, tmp_path)
    first, second, third = (suggested(before, str(number)) for number in range(3))
    finish(before, "0", 0.5)
    before.on_trial_result("1", epoch(1, 0.25))
    # The driver dies here: trial 2 has been recorded but not told, trial 1 was running.
    study, after = open_searcher(config, tmp_path, {third["trial"].identity: record(third["trial"])})
    assert states(study) == [COMPLETE, RUNNING, COMPLETE]
    again = suggested(after, "x")
    assert again == second
    after.on_trial_result("x", epoch(1, 0.25))
    finish(after, "x", 0.625)
    rest = [suggested(after, str(number)) for number in range(2)]
    for number in range(2):
        finish(after, str(number), 0.5)
    assert after.suggest("more") == "FINISHED"
    assert [(trial.number, trial.value) for trial in study.trials] == [(0, 0.5), (1, 0.625), (2, 0.75), (3, 0.5), (4, 0.5)]
    balances = [entry["params"]["regulation.balance"] for entry in (first, second, third, *rest)]
    assert len(set(balances)) == 5, "a search taken up again must not propose the same points"


def test_a_driver_killed_between_ask_and_the_last_parameter_leaves_nothing_running(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    config = study_config(space, num_trials=1)
    killed = open_study(config, tmp_path).ask()
    balance = killed.suggest_float("regulation.balance", 0.0, 1.0)
    study, searcher = open_searcher(config, tmp_path)
    given = suggested(searcher, "a")
    assert given["number"] == 0
    assert given["params"].keys() == space.keys()
    assert given["params"]["regulation.balance"] == balance
    finish(searcher, "a", 0.5)
    assert states(study) == [COMPLETE]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_same_seed_same_search(sampler: str, tmp_path: Path) -> None:
    def balances(folder: Path, seed: int) -> list[float]:
        _, searcher = open_searcher(study_config(sampler=sampler, seed=seed, num_trials=6), folder)
        points = []
        for number in range(6):
            points.append(suggested(searcher, str(number))["params"]["regulation.balance"])
            finish(searcher, str(number), points[-1])
        return points

    one, same, other = balances(tmp_path / "a", 1), balances(tmp_path / "b", 1), balances(tmp_path / "c", 2)
    assert one == same
    assert not set(one) & set(other)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc"])  # gp and nsga2 repeat good values, rightly
def test_a_search_taken_up_again_goes_on_to_new_points(sampler: str, tmp_path: Path) -> None:
    space: dict[str, Distribution] = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    points = set()
    for num_trials in (4, 8, 12):
        _, searcher = open_searcher(study_config(space, sampler=sampler, num_trials=num_trials), tmp_path)
        for number in range(4):
            points.add(suggested(searcher, str(number))["params"]["regulation.balance"])
            finish(searcher, str(number), 0.5)
    assert len(points) == 12


def test_no_more_run_at_once_than_asked(tmp_path: Path) -> None:
    config = study_config(num_trials=3, resources=ResourcesConfig(max_retries=1, retry_seconds=0.0, max_concurrent=1))
    study, searcher = open_searcher(config, tmp_path)
    suggested(searcher, "0")
    assert searcher.suggest("1") is None
    searcher.on_trial_complete("0", error=True)  # by whoever noticed: Tune need not have
    again = suggested(searcher, "0 again")
    assert again["attempt"] == 2
    finish(searcher, "0 again", 0.5)
    for number in ("1", "2"):
        suggested(searcher, number)
        finish(searcher, number, 0.5)
    assert states(study) == [COMPLETE] * 3


CONDITIONAL: dict[str, Distribution] = {
    "regulation.kind": Choice(("fixed", "learnable")),
    "regulation.balance": Float(0.25, 0.75, step=0.25, when=When("regulation.kind", ("fixed",))),
    "pretraining.epochs": Int(1, 4),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_valid_configurations(sampler: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = study_config(CONDITIONAL, sampler=sampler, num_trials=16)
    study, searcher = open_searcher(config, tmp_path)
    kinds = set()
    for number in range(16):
        given = suggested(searcher, str(number))
        trial, params = given["trial"], given["params"]
        kinds.add(trial.regulation.kind)
        assert ("regulation.balance" in params) == (trial.regulation.kind == "fixed")
        assert trial.regulation.balance in (0.25, 0.5, 0.75)
        assert trial.pretraining.epochs in range(1, 5)
        assert params["pretraining.epochs"] == trial.pretraining.epochs
        finish(searcher, str(number), trial.regulation.balance)
    assert searcher.suggest("more") == "FINISHED"
    assert states(study) == [COMPLETE] * 16
    assert kinds == {"fixed", "learnable"}
    assert capfd.readouterr().err == ""


def test_grid_runs_each_combination_once_over_several_drivers(storage: str | None, tmp_path: Path) -> None:
    seen = []
    for num_trials in (5, 5, 100, 100):
        config = study_config(CONDITIONAL, sampler="grid", num_trials=num_trials, optuna_storage=storage)
        study, searcher = open_searcher(config, tmp_path)
        number = 0
        while isinstance(given := searcher.suggest(str(number)), dict):
            seen.append(json.dumps(given["params"]))
            finish(searcher, str(number), 0.5)
            number += 1
    assert len(seen) == len(set(seen)) == 3 * 4 + 4
    assert states(study) == [COMPLETE] * 16


def test_recorded_trials_are_told_and_not_run(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"regulation.balance": Choice((0.1, 0.2, 0.3, 0.4))}
    config = study_config(space, sampler="grid", num_trials=4)
    trials = {balance: resolve(config.trial, {"regulation.balance": balance}) for balance in (0.1, 0.2, 0.3, 0.4)}
    rows = [
        record(trials[0.1]),
        record(trials[0.2], "pruned", accuracy=0.25),
        record(trials[0.3], "failed", accuracy=None),
        record(trials[0.4], "pruned", accuracy=None, regulation_epochs=0),
    ]
    study, searcher = open_searcher(config, tmp_path, {row.identity: row for row in rows})
    given = suggested(searcher, "a")
    assert given["params"] == {"regulation.balance": 0.3}, "only what failed is run again"
    finish(searcher, "a", 0.5)
    assert searcher.suggest("more") == "FINISHED"
    assert states(study) == [COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert [trial.value for trial in study.trials] == [0.75, 0.25, 0.5, None]
    assert study.trials[1].intermediate_values == {2: 0.25}
    assert study.trials[1].user_attrs["reason"] == "because"


@pytest.mark.parametrize("ending", ["finished", "stopped", "broken"])
def test_a_twin_of_a_running_trial_ends_as_that_one(ending: str, tmp_path: Path) -> None:
    config = study_config({"regulation.balance": Choice((0.5,))}, num_trials=3)
    study, searcher = open_searcher(config, tmp_path)
    assert suggested(searcher, "a")["number"] == 0
    assert searcher.suggest("b") is None
    assert states(study) == [RUNNING] * 3
    searcher.on_trial_result("a", epoch(1, 0.25))
    if ending == "finished":
        finish(searcher, "a", 0.5)
    else:
        searcher.on_trial_complete("a", error=ending == "broken")
    expected = {"finished": (COMPLETE, 0.5), "stopped": (PRUNED, 0.25), "broken": (FAIL, None)}[ending]
    assert [(trial.state, trial.value) for trial in study.trials] == [expected] * 3
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.25}] * 3


def test_controls_come_first_and_stay_outside_the_history(tmp_path: Path) -> None:
    config = study_config({"regulation.balance": Choice((0.5,))}, num_trials=1)
    same = config.trial  # balance 0.5: what the search proposes too
    plain, untrained = (TrialConfig(control=control) for control in ("plain", "untrained"))
    records = {untrained.identity: record(untrained)}
    study, searcher = open_searcher(config, tmp_path, records, controls=(same, plain, plain, untrained))
    given = {"trial": same, "role": "control", "number": None, "params": {}, "attempt": 1, "avoid": ()}
    assert suggested(searcher, "a") == given
    assert suggested(searcher, "b")["trial"] == plain
    assert len(study.trials) == 0
    assert searcher.suggest("c") is None
    assert states(study) == [RUNNING], "the search's only point is running as a control"
    finish(searcher, "b", 0.25)
    assert states(study) == [RUNNING]
    finish(searcher, "a", 0.5)
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.5)]


def test_invalid_proposals_fail_with_the_rule_and_do_not_count(tmp_path: Path) -> None:
    # Each value is valid by itself, but deterministic trials refuse bf16.
    space: dict[str, Distribution] = {"deterministic": Choice((True, False)), "precision": Choice(("bf16", "float32"))}
    study, searcher = open_searcher(study_config(space, sampler="grid", num_trials=4), tmp_path)
    numbers = [suggested(searcher, str(number))["number"] for number in range(3)]
    assert numbers == [1, 2, 3]
    assert searcher.suggest("more") is None
    assert study.trials[0].state == FAIL
    assert "deterministic turns mixed precision off" in study.trials[0].user_attrs["invalid"]


def test_trials_without_a_place_are_held_back_and_others_go_first(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"backbone": Choice(("resnet18", "resnet50")), "regulation.balance": Float(0.0, 1.0)}
    study, searcher = open_searcher(study_config(space, num_trials=40, sampler="tpe"), tmp_path)
    pending: list[list[str]] = []
    startable: dict[str, tuple[str, ...]] = {}

    def ask(backbones: Sequence[str]) -> dict[str, tuple[str, ...]]:
        pending.append(sorted(backbones))
        return startable

    searcher.startable = ask
    searcher.lookahead = 3
    assert searcher.suggest("a") is None
    assert len(study.trials) == 0, "nothing is proposed that cannot start"
    startable["resnet18"] = ("large",)
    first, second = suggested(searcher, "a"), suggested(searcher, "b")
    assert [given["trial"].backbone for given in (first, second)] == ["resnet18", "resnet18"]
    assert first["avoid"] == ("large",)
    searcher.on_trial_start("a")
    while searcher.suggest(f"more{len(study.trials)}") is not None:
        pass
    held = [trial for trial in study.trials if trial.params["backbone"] == "resnet50"]
    assert len(held) == 3, "no more wait for a place than run at once"
    assert pending[1:4] == [[], ["resnet18"], ["resnet18"]]
    startable["resnet50"] = ()
    assert suggested(searcher, "c")["number"] == held[0].number


def test_trials_that_would_wait_for_an_experience_are_held_back_and_others_go_first(tmp_path: Path) -> None:
    # Two trunks, one a batch size; the control's length is the trial's own, 10.
    space: dict[str, Distribution] = {
        "pretraining.epochs": Choice((2, 4)),
        "pretraining.batch_size": Choice((32, 64)),
        **BALANCE,
    }
    config = study_config(space, num_trials=40, sampler="tpe", experience=ExperienceConfig())
    study, searcher = open_searcher(config, tmp_path, controls=(config.trial, TrialConfig(control="plain")))
    searcher.lookahead = 3
    assert suggested(searcher, "control")["trial"] == config.trial
    assert suggested(searcher, "plain")["trial"].control == "plain"  # needs no experience
    trainers = [suggested(searcher, name)["trial"].pretraining.batch_size for name in "01"]
    assert sorted(trainers) == [32, 64], "each trunk has one trainer"
    assert searcher.suggest("x") is None
    assert searcher.num_waiting == 3
    asked = len(study.trials)
    assert searcher.suggest("x") is None
    assert len(study.trials) == asked, "Optuna is asked for no more than may wait"
    searcher.on_trial_result("0", epoch(4, 0.0, stage="pretraining"))
    searcher.on_trial_result("1", epoch(4, 0.0, stage="pretraining"))
    assert all(isinstance(searcher.suggest(f"go {number}"), dict) for number in range(20)), "the experiences are there"
    assert searcher.num_waiting == 0


def test_a_sampler_that_does_not_learn_is_asked_for_as_many_as_it_takes_to_find_one_that_can_start(tmp_path: Path) -> None:
    space = {"pretraining.batch_size": Choice((32, 64)), "pretraining.epochs": Choice((1, 2, 3, 4, 5))}  # the first trunk first
    _, searcher = open_searcher(study_config(space, sampler="grid", num_trials=10, experience=ExperienceConfig()), tmp_path)
    started = [suggested(searcher, name)["trial"].pretraining for name in "ab"]
    assert [(stage.batch_size, stage.epochs) for stage in started] == [(32, 1), (64, 1)]
    assert searcher.suggest("c") is None
    assert searcher.num_waiting == 8


def test_an_experience_that_is_there_already_lets_the_others_go(tmp_path: Path) -> None:
    config = study_config(num_trials=3, experience=ExperienceConfig())
    _, searcher = open_searcher(config, tmp_path)
    suggested(searcher, "a")
    assert searcher.suggest("b") is None
    searcher.on_trial_result("a", {EXPERIENCED: {"epochs": config.trial.pretraining.epochs}})
    suggested(searcher, "b")
    suggested(searcher, "c")


def test_a_trial_that_the_machine_broke_comes_again_after_a_pause_and_then_fails(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=2, retry_seconds=10.0))
    now = 0.0
    study = open_study(config, tmp_path)
    searcher = OptunaSearcher(study, config, records={}, clock=lambda: now)
    first = suggested(searcher, "a")
    for attempt, pause in ((2, 10.0), (3, 20.0)):
        searcher.on_trial_complete("a", error=True)
        assert searcher.is_retried("a")
        now += pause - 0.1
        assert searcher.suggest("a") is None
        now += 0.1
        assert suggested(searcher, "a") == {**first, "attempt": attempt}
        searcher._retried.clear()
    assert states(study) == [RUNNING]
    searcher.on_trial_complete("a", error=True)
    assert not searcher.is_retried("a")
    assert searcher.suggest("a") == "FINISHED"
    assert states(study) == [FAIL]


def test_a_lost_machine_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=1, retry_seconds=0.0))
    study, searcher = open_searcher(config, tmp_path)
    lost: set[str] = set()
    searcher.is_machine_lost = lost.__contains__
    for attempt in range(1, 6):
        assert suggested(searcher, f"{attempt}")["attempt"] == attempt
        if attempt % 2:
            lost.add(f"{attempt}")  # known at once
        searcher.on_trial_complete(f"{attempt}", error=True)
        lost.add(f"{attempt}")  # or found out before it begins again
    suggested(searcher, "6")
    searcher.on_trial_complete("6", error=True)
    suggested(searcher, "7")
    assert states(study) == [RUNNING]
    searcher.on_trial_complete("7", error=True)
    assert states(study) == [FAIL]


def test_a_trial_that_loses_every_machine_has_an_end(tmp_path: Path) -> None:
    study, searcher = open_searcher(study_config(num_trials=1), tmp_path)
    searcher.is_machine_lost = lambda trial_id: True
    attempts = 0
    while isinstance(searcher.suggest(f"{attempts}"), dict):
        searcher.on_trial_complete(f"{attempts}", error=True)
        attempts += 1
    assert attempts == 100
    assert states(study) == [FAIL]


def test_a_worker_that_dies_after_its_trial_has_ended_changes_nothing(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=5))
    study, searcher = open_searcher(config, tmp_path)
    suggested(searcher, "a")
    searcher.on_trial_result("a", last_result(role="search", epochs=3, accuracy=0.5, loss=0.5, device_seconds=3.0))
    searcher.on_trial_complete("a", error=True)
    assert not searcher.is_retried("a")
    assert searcher.suggest("b") == "FINISHED"
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.5)]


def test_a_trial_that_stopped_unasked_is_begun_again(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=1, retry_seconds=0.0))
    study, searcher = open_searcher(config, tmp_path)
    first = suggested(searcher, "a")
    searcher.on_trial_complete("a", unfinished_result("interrupted"))
    assert suggested(searcher, "b") == {**first, "attempt": 2}
    assert states(study) == [RUNNING]


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
    _, searcher = open_searcher(config, tmp_path)
    suggested(searcher, "a")
    finish(searcher, "a", 0.5)
    assert searcher.suggest("b") == "FINISHED"
    assert states(study).count(COMPLETE) == 1
    assert RUNNING not in states(study)


def test_a_fault_in_code_fails_at_once(tmp_path: Path) -> None:
    config = study_config(num_trials=1, resources=ResourcesConfig(max_retries=5))
    study, searcher = open_searcher(config, tmp_path)
    suggested(searcher, "a")
    searcher.on_trial_complete("a", {**unfinished_result("broken"), FAULT: "TypeError: no"})
    assert searcher.suggest("b") == "FINISHED"
    assert states(study) == [FAIL]
    assert study.trials[0].user_attrs["reason"] == "TypeError: no"


def test_a_study_told_to_stop_hands_out_no_more_and_goes_on_the_next_time(tmp_path: Path) -> None:
    config = study_config(num_trials=3)
    is_stopping = False
    study = open_study(config, tmp_path)
    searcher = OptunaSearcher(study, config, records={}, is_stopping=lambda: is_stopping)
    left = suggested(searcher, "a")
    is_stopping = True
    assert searcher.suggest("b") == "FINISHED"
    searcher.on_trial_complete("a", unfinished_result("interrupted"))
    assert not searcher.is_done
    assert states(study) == [RUNNING]
    _, after = open_searcher(config, tmp_path)
    assert suggested(after, "x") == left
    assert [suggested(after, name)["number"] for name in "yz"] == [1, 2]


def test_what_optuna_knows_and_the_records_do_not_is_run_again_and_not_told_again(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    study, before = open_searcher(config, tmp_path)
    given = suggested(before, "a")
    finish(before, "a", 0.5)
    reruns = reconcile(study, config, {}).reruns
    searcher = OptunaSearcher(study, config, records={}, reruns=reruns)
    assert searcher.has_work
    assert suggested(searcher, "b") == given
    finish(searcher, "b", 0.25)
    assert searcher.suggest("c") == "FINISHED"
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.5)]


def test_a_space_without_a_valid_configuration_is_refused(tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"deterministic": Choice((True, False)), "precision": Choice(("bf16", "float32"))}
    config = study_config(space)
    study = open_study(config, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.PartialFixedSampler({"deterministic": True, "precision": "bf16"}, study.sampler)
    searcher = OptunaSearcher(study, config, records={})
    with pytest.raises(ConfigError, match="100 proposals in a row were not"):
        searcher.suggest("a")
    assert states(study) == [FAIL] * 100


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_several_objectives(sampler: str, storage: str | None, tmp_path: Path) -> None:
    objectives = (Objective(metric="accuracy"), Objective(metric="device_seconds", mode="min"))
    config = study_config(sampler=sampler, num_trials=8, objectives=objectives, optuna_storage=storage)
    study, searcher = open_searcher(config, tmp_path)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    for number in range(5):
        suggested(searcher, str(number))
        searcher.on_trial_result(str(number), epoch(1, 0.5))
        finish(searcher, str(number), number / 10, device_seconds=5.0 - number)
    for number in range(5, 8):
        suggested(searcher, str(number))
    searcher.on_trial_complete("5", epoch(1, 0.5))
    searcher.on_trial_complete("6", error=True)
    finish(searcher, "7", math.nan)
    assert states(study) == [COMPLETE] * 5 + [PRUNED, FAIL, FAIL]
    assert [trial.number for trial in study.best_trials] == [4]
    assert study.metric_names == ["accuracy", "device_seconds"]


def test_a_user_s_enqueued_trial_goes_first(tmp_path: Path) -> None:
    config = study_config()
    open_study(config, tmp_path).enqueue_trial({"regulation.balance": 0.125})
    _, searcher = open_searcher(config, tmp_path)
    assert suggested(searcher, "a")["params"] == {"regulation.balance": 0.125}


def test_what_tune_pickles_of_the_searcher_is_empty(storage: str | None, tmp_path: Path) -> None:
    _, searcher = open_searcher(study_config(optuna_storage=storage), tmp_path)
    suggested(searcher, "a")
    assert vars(pickle.loads(pickle.dumps(searcher))) == {}


# What a trial does inside Tune, by its balance. The order and the accuracies make ASHA stop the second one at its first rung.
ENDINGS = {0.9: "finish", 0.1: "finish", 0.3: "diverge", 0.4: "break", 0.95: "not a number"}
SCENARIO: dict[str, Distribution] = {"regulation.balance": Choice(tuple(ENDINGS))}


def quick_trainable(endings: Mapping[float, str]) -> Any:
    """A trainable of three epochs that needs neither torch nor optuna: all that it reports is built here."""
    reports = {}
    roles: tuple[Role, ...] = ("search", "control")
    for (balance, ending), role in itertools.product(endings.items(), roles):
        epochs = [epoch(number, balance * number / 3, role=role) for number in (1, 2, 3)]
        last = last_result(role=role, epochs=3, accuracy=balance, loss=0.5, device_seconds=1.0)
        if ending == "diverge":
            epochs = [{**epochs[0], "metric/accuracy": math.nan}]
            diverged = Diverged("regulation", 7)
            last = last_result(role=role, epochs=1, accuracy=None, loss=None, device_seconds=1.0, diverged=diverged)
        if ending == "not a number":
            last = {**last, "metric/accuracy": math.nan}
        reports[balance, role] = [*epochs, last]

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        is_ours = "trial" in config
        balance = config["trial"].regulation.balance if is_ours else config["regulation.balance"]
        if endings[balance] == "break":
            raise RuntimeError("the machine broke")
        for report in reports[balance, config["role"] if is_ours else "search"]:
            tune.report(report)

    return train


def run_in_tune(
    searcher: Any, folder: Path, endings: Mapping[float, str], *, scheduler: Any = None, concurrent: int = 1
) -> int:
    """Run to the end; the number of trials that Tune ran."""
    from ray import tune

    tuner = tune.Tuner(
        quick_trainable(endings),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1 if isinstance(searcher, OptunaSearcher) else len(endings),
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    return len(tuner.fit())


def asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr=REGULATION_EPOCH, metric=metric_key("accuracy"), mode="max", max_t=3, reduction_factor=2)


def test_in_tune_where_ray_s_own_bridge_is_wrong(ray_local: None, tmp_path: Path) -> None:
    from ray.tune.search.optuna import OptunaSearch

    config = study_config(SCENARIO, sampler="grid", num_trials=5, scheduler=SchedulerConfig(name="asha"))
    ours, searcher = open_searcher(config, tmp_path)
    run_in_tune(searcher, tmp_path / "ours", ENDINGS, scheduler=asha())

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "theirs.journal")))

    def open_theirs() -> Any:
        return OptunaSearch(
            {"regulation.balance": optuna.distributions.CategoricalDistribution(tuple(ENDINGS))},
            metric=metric_key("accuracy"),
            mode="max",
            points_to_evaluate=[{"regulation.balance": balance} for balance in ENDINGS],
            storage=storage,
            study_name="theirs",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )

    run_in_tune(open_theirs(), tmp_path / "theirs", ENDINGS, scheduler=asha())
    theirs = optuna.load_study(study_name="theirs", storage=storage)

    order = [trial.params["regulation.balance"] for trial in ours.trials]
    assert order == list(ENDINGS) == [trial.params["regulation.balance"] for trial in theirs.trials]
    # In this order: finished, stopped by ASHA, diverged, broken, finished without a number.
    assert states(ours) == [COMPLETE, PRUNED, PRUNED, FAIL, FAIL]
    assert states(theirs) == [COMPLETE, COMPLETE, RUNNING, FAIL, RUNNING]
    # The result at which a scheduler stops a trial reaches a searcher by another road than the others.
    assert [list(trial.intermediate_values) for trial in ours.trials] == [[1, 2, 3], [1], [1], [], [1, 2, 3]]
    assert [list(trial.intermediate_values) for trial in theirs.trials[:2]] == [[1, 2, 3], []]
    assert ours.trials[1].value == pytest.approx(0.1 / 3)

    open_theirs()
    assert states(theirs)[5:] == [WAITING] * 5, "the start points are queued again"
    again, searcher = open_searcher(config, tmp_path)
    assert searcher.suggest("a") == "FINISHED"
    assert len(again.trials) == 5


def test_in_tune_controls_orphans_and_several_objectives(ray_local: None, tmp_path: Path) -> None:
    values = (0.1, 0.2, 0.3, 0.6)
    config = study_config(
        {"regulation.balance": Choice(values)},
        sampler="tpe",
        num_trials=12,
        objectives=(Objective(), Objective(metric="loss", mode="min")),
        optuna_storage=f"sqlite:///{tmp_path}/optuna.db",
    )
    _, killed = open_searcher(config, tmp_path)
    orphans = [suggested(killed, str(number)) for number in range(2)]
    controls = (config.trial, TrialConfig(control="plain"))  # balances 0.5 and, as configured, 0.5
    study, searcher = open_searcher(config, tmp_path, controls=controls)
    endings = dict.fromkeys((*values, 0.5), "finish")
    num_run = run_in_tune(searcher, tmp_path, endings, concurrent=2)
    assert states(study) == [COMPLETE] * 12
    assert [trial.values for trial in study.trials] == [[trial.params["regulation.balance"], 0.5] for trial in study.trials]
    for orphan in orphans:
        assert study.trials[orphan["number"]].user_attrs["identity"] == orphan["trial"].identity
    assert len(controls) + len(values) <= num_run <= len(controls) + 12


def test_in_tune_the_median_rule_bears_controls_and_diverged_trials(ray_local: None, tmp_path: Path) -> None:
    from ray.tune.schedulers import MedianStoppingRule

    endings = {0.9: "finish", 0.8: "finish", 0.3: "diverge", 0.85: "finish", 0.2: "finish", 0.01: "finish"}
    config = study_config({"regulation.balance": Choice(tuple(endings)[:-1])}, sampler="grid", num_trials=5)
    control = resolve(config.trial, {"regulation.balance": 0.01})
    study, searcher = open_searcher(config, tmp_path, controls=(control,))
    median = MedianStoppingRule(time_attr=REGULATION_EPOCH, metric=metric_key("accuracy"), mode="max", grace_period=1)
    assert run_in_tune(searcher, tmp_path, endings, scheduler=median) == 6
    assert states(study) == [COMPLETE, COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert "diverged_step" in study.trials[2].user_attrs
    assert study.trials[4].user_attrs["reason"].startswith("stopped by the scheduler")


class Drivers:
    """Several drivers of one study in one process; ``die`` ends one as kill -9 would. Each has its ``Claims``."""

    def __init__(self, config: StudyConfig, folder: Path, controls: tuple[TrialConfig, ...] = ()) -> None:
        self._config, self._folder, self._controls = config, folder, controls
        self._holders: dict[str, str] = {}
        self.records: dict[str, TrialRecord] = {}
        self.now = 0.0

    def begin(self, name: str) -> OptunaSearcher:
        holders = self._holders

        class Claims:
            def try_acquire(self, key: str) -> bool:
                return holders.setdefault(key, name) == name

            def release(self, key: str) -> None:
                assert holders.pop(key) == name

            def turn(self) -> AbstractContextManager[None]:
                return nullcontext()

        study = open_study(self._config, self._folder)
        return OptunaSearcher(
            study, self._config, records=self.records, controls=self._controls, claims=Claims(), clock=lambda: self.now
        )

    def die(self, name: str) -> None:
        for key in [key for key, holder in self._holders.items() if holder == name]:
            del self._holders[key]

    def finish(self, searcher: OptunaSearcher, trial_id: str, given: dict[str, Any]) -> None:
        """A record first, as the driver does, and then the searcher."""
        config = given["trial"]
        self.records[config.identity] = record(config, role=given["role"], number=given["number"])
        finish(searcher, trial_id, 0.75)

    @property
    def held(self) -> set[str]:
        return set(self._holders)


def shared_config(storage: str | None, **kwargs: Any) -> StudyConfig:
    return study_config(optuna_storage=storage, **kwargs)


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe"])
def test_two_drivers_propose_and_run_each_trial_once(sampler: str, storage: str | None, tmp_path: Path) -> None:
    space: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0, step=0.1)}
    config = shared_config(storage, space=space, sampler=sampler, num_trials=6)
    control = replace_paths(config.trial, {"control": "plain"})
    drivers = Drivers(config, tmp_path, (control,))
    searchers = {name: drivers.begin(name) for name in ("a", "b")}
    given: list[tuple[str, str, dict[str, Any]]] = []
    for turn in range(40):
        name = "ab"[turn % 2]
        answer = searchers[name].suggest(f"{name}{turn}")
        if isinstance(answer, dict):
            given.append((name, f"{name}{turn}", answer))
        if turn % 3 == 2 and given:
            name, trial_id, done = given.pop(0)
            drivers.finish(searchers[name], trial_id, done)
        drivers.now += 6.0
    assert [searcher.suggest("more") for searcher in searchers.values()] == ["FINISHED"] * 2
    assert all(searcher.is_done for searcher in searchers.values())
    assert len(drivers.records) == len({*drivers.records, control.identity})
    assert control.identity in drivers.records
    found = open_study(config, tmp_path).trials
    assert [trial.state for trial in found] == [COMPLETE] * 6
    assert not drivers.held


def test_what_a_dead_driver_was_running_is_run_by_another_and_what_it_recorded_is_told(
    storage: str | None, tmp_path: Path
) -> None:
    drivers = Drivers(shared_config(storage, num_trials=3), tmp_path)
    first, second = drivers.begin("first"), drivers.begin("second")
    recorded, lost = suggested(first, "a"), suggested(first, "b")
    own = suggested(second, "c")
    assert second.suggest("d") is None, "the other driver lives"
    drivers.records[recorded["trial"].identity] = record(recorded["trial"], number=recorded["number"])  # then it was killed
    drivers.now += 6.0
    assert second.suggest("d") is None
    drivers.die("first")
    drivers.now += 6.0
    assert suggested(second, "d")["trial"] == lost["trial"]
    drivers.finish(second, "d", lost)
    assert second.suggest("e") is None
    drivers.finish(second, "c", own)
    assert second.suggest("e") == "FINISHED"
    assert states(open_study(shared_config(storage, num_trials=3), tmp_path)) == [COMPLETE] * 3
    assert not drivers.held


def test_a_proposal_that_another_driver_is_running_gets_its_result(storage: str | None, tmp_path: Path) -> None:
    one: dict[str, Distribution] = {"regulation.balance": Choice((0.5,))}
    drivers = Drivers(shared_config(storage, space=one, num_trials=2), tmp_path)
    first, second = drivers.begin("first"), drivers.begin("second")
    given = suggested(first, "a")
    assert second.suggest("b") is None
    drivers.finish(first, "a", given)
    drivers.now += 6.0
    assert second.suggest("b") == "FINISHED"
    study = open_study(shared_config(storage, space=one, num_trials=2), tmp_path)
    assert [(trial.state, trial.value) for trial in study.trials] == [(COMPLETE, 0.75)] * 2
