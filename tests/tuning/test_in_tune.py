"""The searcher and the bridge inside Ray's real Tune, and beside them what Ray's own bridge to Optuna does."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from emoreg.config import Choice, Distribution, Objective, SchedulerConfig, TrialConfig, replace_paths
from emoreg.results.records import Provenance, Role, TrialRecord
from emoreg.tracking.observer import StudyObserver
from emoreg.tuning.bridge import TuneBridge
from emoreg.tuning.queue import JOB
from emoreg.tuning.recorder import Recorder
from emoreg.tuning.searcher import TuneSearcher
from emoreg.tuning.signals import Stop
from emoreg.tuning.tune_results import EVENT, REGULATION_EPOCH, TrialEnded, TrialPlaced, last_result, metric_key
from tests.tuning.test_dispatcher import (
    COMPLETE,
    FAIL,
    PRUNED,
    RUNNING,
    WAITING,
    Search,
    completed,
    diverged,
    epoch,
    study_config,
)

PROVENANCE = Provenance(study="test", storage="here", command=None, versions={}, git_commit=None, host="here")
ENDINGS = {0.9: "finish", 0.1: "finish", 0.3: "diverge", 0.4: "break", 0.95: "not a number"}
"""What a trial does, by its balance. The order and the accuracies make ASHA stop the second one at its first rung."""
SCENARIO: dict[str, Distribution] = {"regulation.balance": Choice(tuple(ENDINGS))}


def quick_trainable(endings: Mapping[float, str]) -> Any:
    """A trainable of three epochs that needs neither torch nor optuna: all that it reports is built here."""
    reports = {}
    roles: tuple[Role, ...] = ("search", "control")
    for (balance, ending), role in itertools.product(endings.items(), roles):
        epochs = [epoch(number, balance * number / 3, role=role) for number in (1, 2, 3)]
        outcome = completed(balance, seconds=1.0)
        if ending == "diverge":
            epochs = [{**epochs[0], "metric/val_accuracy": math.nan}]
            outcome = diverged()
        if ending == "not a number":
            outcome = completed(math.nan)
        reports[balance, role] = [*epochs, last_result(TrialEnded(outcome), role=role)]

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        is_ours = JOB in config
        balance = config[JOB].trial.config.regulation.balance if is_ours else config["regulation.balance"]
        if is_ours:
            tune.report({EVENT: TrialPlaced("node", "CPU")})
        if endings[balance] == "break":
            raise RuntimeError("the machine broke")
        for report in reports[balance, config[JOB].role if is_ours else "search"]:
            tune.report(report)

    return train


class Ended(StudyObserver):
    """Notes the records of trials that ended, and what Optuna had been told by then."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self.records: list[TrialRecord] = []

    def on_end(self, trial: Any, record: TrialRecord) -> None:
        assert record.number is None or self._search.study.trials[record.number].state == RUNNING, "Optuna is told last"
        self.records.append(record)


def run_ours(
    search: Search, folder: Path, endings: Mapping[float, str], *, scheduler: Any = None, concurrent: int = 1
) -> list[TrialRecord]:
    """Run to the end; the records of the trials that Tune ran."""
    ended = Ended(search)
    stop = Stop()
    bridge = TuneBridge(
        search.config,
        Recorder(search.records, PROVENANCE),
        search.dispatcher,
        ended,
        stop,
        slots=lambda: concurrent,
        log_tail=lambda identity: "the tail",
    )
    searcher = TuneSearcher(search.dispatcher, slots=lambda: concurrent, is_stopping=lambda: stop.is_asked)
    num_run = run_in_tune(
        searcher, folder, endings, scheduler=scheduler, concurrent=concurrent, num_samples=-1, callbacks=[bridge]
    )
    assert num_run == len(ended.records)
    assert search.is_done
    return ended.records


def run_in_tune(
    searcher: Any,
    folder: Path,
    endings: Mapping[float, str],
    *,
    scheduler: Any = None,
    concurrent: int = 1,
    num_samples: int,
    callbacks: Any = (),
) -> int:
    """Run to the end; the number of trials that Tune ran."""
    from ray import tune

    tuner = tune.Tuner(
        quick_trainable(endings),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=num_samples,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0, callbacks=list(callbacks)),
    )
    return len(tuner.fit())


def asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr=REGULATION_EPOCH, metric=metric_key("val_accuracy"), mode="max", max_t=3, reduction_factor=2)


@pytest.mark.soak
@pytest.mark.slow
def test_in_tune_where_ray_s_own_bridge_is_wrong(ray_local: None, tmp_path: Path) -> None:
    from ray.tune.search.optuna import OptunaSearch

    config = study_config(SCENARIO, sampler="grid", num_trials=5, scheduler=SchedulerConfig(name="asha"))
    search = Search(config, tmp_path)
    records = run_ours(search, tmp_path / "ours", ENDINGS, scheduler=asha())

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "theirs.journal")))

    def open_theirs() -> Any:
        return OptunaSearch(
            {"regulation.balance": optuna.distributions.CategoricalDistribution(tuple(ENDINGS))},
            metric=metric_key("val_accuracy"),
            mode="max",
            points_to_evaluate=[{"regulation.balance": balance} for balance in ENDINGS],
            storage=storage,
            study_name="theirs",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )

    run_in_tune(open_theirs(), tmp_path / "theirs", ENDINGS, scheduler=asha(), num_samples=len(ENDINGS))
    theirs = optuna.load_study(study_name="theirs", storage=storage)

    ours = search.study
    order = [trial.params["regulation.balance"] for trial in ours.trials]
    assert order == list(ENDINGS) == [trial.params["regulation.balance"] for trial in theirs.trials]
    # In this order: finished, stopped by ASHA, diverged, broken, finished without a number.
    assert search.states == [COMPLETE, PRUNED, PRUNED, FAIL, FAIL]
    assert [trial.state for trial in theirs.trials] == [COMPLETE, COMPLETE, RUNNING, FAIL, RUNNING]
    assert [row.end_reason for row in records] == [
        "completed",
        "stopped_by_scheduler",
        "diverged",
        "infrastructure",
        "completed",
    ]
    assert [row.log_tail for row in records] == [None, None, None, "the tail", None]
    # The result at which a scheduler stops a trial reaches a searcher by another road than the others.
    assert [list(trial.intermediate_values) for trial in ours.trials] == [[1, 2, 3], [1], [1], [], [1, 2, 3]]
    assert [list(trial.intermediate_values) for trial in theirs.trials[:2]] == [[1, 2, 3], []]
    assert ours.trials[1].value == pytest.approx(0.1 / 3)

    open_theirs()
    assert [trial.state for trial in theirs.trials[5:]] == [WAITING] * 5, "the start points are queued again"
    again = Search(config, tmp_path)
    assert again.is_done or again.next("a") is None
    assert len(again.study.trials) == 5


@pytest.mark.slow
def test_in_tune_controls_orphans_and_several_objectives(ray_local: None, tmp_path: Path) -> None:
    values = (0.1, 0.2, 0.3, 0.6)
    config = study_config(
        {"regulation.balance": Choice(values)},
        sampler="tpe",
        num_trials=12,
        objectives=(Objective(), Objective(metric="val_loss", mode="min")),
        optuna_storage=f"sqlite:///{tmp_path}/optuna.db",
    )
    killed = Search(config, tmp_path)
    orphans = [killed.given(str(number)) for number in range(2)]
    controls = (config.trial, TrialConfig(control="plain"))  # balances 0.5 and, as configured, 0.5
    search = Search(config, tmp_path, controls=controls)
    endings = dict.fromkeys((*values, 0.5, 0.0), "finish")
    num_run = len(run_ours(search, tmp_path, endings, concurrent=2))
    assert search.states == [COMPLETE] * 12
    trials = search.study.trials
    assert [trial.values for trial in trials] == [[trial.params["regulation.balance"], 0.5] for trial in trials]
    for orphan in orphans:
        assert trials[orphan.number or 0].user_attrs["identity"] == orphan.trial.identity
    assert len(controls) + len(values) <= num_run <= len(controls) + 12


@pytest.mark.slow
def test_in_tune_the_median_rule_bears_controls_and_diverged_trials(ray_local: None, tmp_path: Path) -> None:
    from ray.tune.schedulers import MedianStoppingRule

    endings = {0.9: "finish", 0.8: "finish", 0.3: "diverge", 0.85: "finish", 0.2: "finish", 0.01: "finish"}
    config = study_config({"regulation.balance": Choice(tuple(endings)[:-1])}, sampler="grid", num_trials=5)
    control = replace_paths(config.trial, {"regulation.balance": 0.01})
    search = Search(config, tmp_path, controls=(control,))
    median = MedianStoppingRule(time_attr=REGULATION_EPOCH, metric=metric_key("val_accuracy"), mode="max", grace_period=1)
    assert len(run_ours(search, tmp_path, endings, scheduler=median)) == 6
    assert search.states == [COMPLETE, COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert "diverged_step" in search.study.trials[2].user_attrs
    assert search.study.trials[4].user_attrs["reason"].startswith("stopped by the scheduler")


def test_what_tune_pickles_of_the_searcher_is_empty(tmp_path: Path) -> None:
    search = Search(study_config(), tmp_path)
    searcher = TuneSearcher(search.dispatcher, slots=lambda: 1, is_stopping=lambda: False)
    assert isinstance(searcher.suggest("a"), dict)
    assert vars(pickle.loads(pickle.dumps(searcher))) == {}


def test_a_study_told_to_stop_hands_out_no_more(tmp_path: Path) -> None:
    stop = Stop()
    searcher = TuneSearcher(Search(study_config(), tmp_path).dispatcher, slots=lambda: 1, is_stopping=lambda: stop.is_asked)
    assert isinstance(searcher.suggest("a"), dict)
    stop.ask()
    assert searcher.suggest("b") == "FINISHED"
