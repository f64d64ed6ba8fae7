"""Optuna's history against its real storages and real records: opened, reconciled, warm-started."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, PendingRollbackError

from emoreg.config import (
    Choice,
    Distribution,
    Float,
    Int,
    Objective,
    SamplerConfig,
    StudyConfig,
    TrialConfig,
    Value,
    When,
    replace_paths,
)
from emoreg.config.resolved import resolve_trial
from emoreg.config.search_space import suggest
from emoreg.errors import ConfigError, StorageError
from emoreg.results.outcome import EndReason, Outcome, PretrainingCost
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.retry import Patience
from emoreg.storage.sealed import seal, unseal
from emoreg.tuning.optuna_storage import _retrying, _RetryingStorage
from emoreg.tuning.optuna_study import (
    GRID,
    INVALID,
    REPLACES,
    WARM_START,
    count_proposed,
    no_experimental_warnings,
    open_study,
    replaced,
    sampler_of,
)
from emoreg.tuning.postgres import no_answer
from emoreg.tuning.reconcile import check_warm_start, reconcile, warm_start
from tests.helpers.written import write_rows, write_study_json

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)
BALANCE: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0)}
CONDITIONAL: dict[str, Distribution] = {
    "regulation.optimizer.name": Choice(("adamw", "sgd")),
    "regulation.optimizer.momentum": Float(0.0, 0.95, when=When("regulation.optimizer.name", ("sgd",))),
    "pretraining.epochs": Int(1, 9, step=2),
}
SGD: dict[str, Value] = {"regulation.optimizer.name": "sgd", "regulation.optimizer.momentum": 0.5}
TWO = (Objective(metric="val_accuracy"), Objective(metric="device_seconds", mode="min"))
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid", "qmc", "nsga2")


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """``optuna_storage``: each test that takes it holds for both, unless it says in which it looks."""
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/optuna.db"


def study_config(
    space: Mapping[str, Distribution] = BALANCE, *, sampler: Any = "random", seed: int = 0, startup: int = 3, **kwargs: Any
) -> StudyConfig:
    sampled = SamplerConfig(name=sampler, seed=seed, num_startup_trials=startup)
    return StudyConfig(search_space=space, sampler=sampled, **{"num_trials": 4, **kwargs})


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def propose(study: optuna.Study, config: StudyConfig, params: Mapping[str, Value] | None = None) -> optuna.Trial:
    """Ask as the searcher does; ``params`` fixes the values."""
    if params is not None:
        study.enqueue_trial(dict(params))
    with no_experimental_warnings():
        study.sampler = sampler_of(config, study.get_trials(deepcopy=False))
    trial = study.ask()
    trial_config = resolve_trial(replace_paths(config.trial, suggest(config.search_space, config.trial, trial)))
    trial.set_user_attr("identity", trial_config.identity)
    trial.set_user_attr("seed", trial_config.config.seed)
    return trial


def balances(study: optuna.Study, config: StudyConfig, *values: float) -> list[optuna.Trial]:
    return [propose(study, config, {"regulation.balance": value}) for value in values]


def record(
    config: StudyConfig,
    params: Mapping[str, Value],
    *,
    number: int | None = 0,
    status: Any = "finished",
    role: Any = "search",
    accuracy: float = 0.75,
    seconds: float = 10.0,
) -> TrialRecord:
    ends = {"finished": EndReason.COMPLETED, "pruned": EndReason.STOPPED_BY_SCHEDULER, "failed": EndReason.INFRASTRUCTURE}
    is_measured = status != "failed"
    outcome = Outcome(
        end=ends[status],
        message=None if status == "finished" else "because",
        val_accuracy=accuracy if is_measured else None,
        val_loss=0.5 if is_measured else None,
        regulation_epochs=2 if is_measured else 0,
        regulation_seconds=seconds - 1.0,
        pretraining=PretrainingCost(paid_seconds=1.0),
    )
    trial = resolve_trial(replace_paths(config.trial, params))
    return TrialRecord.of(trial, outcome, role=role, number=number, params=params, device="CPU", started="")


def by_identity(*rows: TrialRecord) -> dict[str, TrialRecord]:
    return {row.identity: row for row in rows}


def balance_record(config: StudyConfig, balance: float, **kwargs: Any) -> TrialRecord:
    return record(config, {"regulation.balance": balance}, **kwargs)


@pytest.fixture
def folder_of(tmp_path: Path) -> Any:
    return lambda name: Files(name if "/" in name else str(tmp_path / name))


def write_study(folder: Path, *rows: TrialRecord) -> None:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    write_rows(folder, "trials", TrialRecord, [*Records(folder).trials.values(), *rows])


def test_a_journal_torn_by_a_kill_is_read_on(tmp_path: Path) -> None:
    config = study_config()
    study = open_study(config, tmp_path)
    study.tell(propose(study, config), 0.5)
    journal = tmp_path / "optuna.journal"
    whole = journal.read_bytes()
    for cut in range(whole.rstrip(b"\n").rfind(b"\n") + 2, len(whole), 25):  # within the last line: the tell
        journal.write_bytes(whole[:cut])
        study = open_study(config, tmp_path)
        assert states(study) == [RUNNING]
        study.tell(0, 0.5)
        assert states(open_study(config, tmp_path)) == [COMPLETE]


def test_sampler_names_and_their_startup_trials() -> None:
    with no_experimental_warnings():
        samplers = {name: sampler_of(study_config(sampler=name), ()) for name in SAMPLERS}
    assert {name: type(sampler).__name__ for name, sampler in samplers.items()} == {
        "tpe": "TPESampler",
        "gp": "GPSampler",
        "cmaes": "CmaEsSampler",
        "random": "RandomSampler",
        "grid": "RandomSampler",
        "qmc": "QMCSampler",
        "nsga2": "NSGAIISampler",
    }
    assert [vars(samplers[name])["_n_startup_trials"] for name in ("tpe", "gp", "cmaes")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objectives": (Objective(metric="val_loss", mode="min"),)}, r"restore its objectives.*\('val_accuracy', 'max'\)"),
        ({"space": {"regulation.balance": Choice((0.1, 0.2))}}, "restore its kind of parameter regulation.balance"),
        ({"space": {"regulation.balance": Float(0.1, 0.9, log=True)}}, "restore its kind of parameter regulation.balance"),
    ],
)
def test_another_search_under_the_same_name_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = study_config()
    propose(open_study(config, tmp_path), config)
    with pytest.raises(StorageError, match=message):
        open_study(study_config(**changed), tmp_path)
    narrower = study_config({"regulation.balance": Float(0.5, 0.75), "drop_path": Float(0.0, 0.5)})
    assert len(open_study(narrower, tmp_path).trials) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is no database URL"),
        ("postgresql://me:s3cret@host:port/x", "is no database URL"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        (
            "nosuchsql://me:s3cret@host/x",
            r"Install the driver: .*nosuchsql://me:\*\*\*@host/x is not \(its driver is not installed\)",
        ),
    ],
)
def test_an_unusable_database_is_named_without_its_password(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        open_study(study_config(optuna_storage=url), tmp_path)
    assert "s3cret" not in str(caught.value)


def test_an_unreadable_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.journal").write_text("not\njson\n")
    with pytest.raises(
        StorageError,
        match=r"or move it away .* must be readable, writable and whole, but .*optuna.journal is not",
    ):
        open_study(study_config(), tmp_path)


def test_no_flipped_bit_of_the_journal_is_believed(tmp_path: Path) -> None:
    """Each bit of a line: the last one's too, which Optuna passes over where it cannot be read."""
    config = study_config(num_trials=2)
    study = open_study(config, tmp_path)
    for value in (0.25, 0.5):
        trial = study.ask({"regulation.balance": optuna.distributions.FloatDistribution(0.1, 0.9)})
        trial.report(value, 1)
        study.tell(trial, value)
    path = tmp_path / "optuna.journal"
    whole, expected = path.read_bytes(), study.get_trials()
    random = np.random.default_rng(0)
    refused = 0
    for position in sorted({*range(0, len(whole), 7), len(whole) - 1}):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = open_study(config, tmp_path).get_trials()
        except StorageError:
            refused += 1
        else:
            assert found == expected
        assert path.read_bytes().startswith(damaged), "nothing is cut off"
    assert refused > len(whole) / 7 / 2
    path.write_bytes(whole)
    theirs = optuna.load_study(study_name=config.name, storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    assert theirs.get_trials() == expected, "other programs read it"


def test_opening_leaves_optuna_s_verbosity_alone_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    open_study(study_config(), tmp_path)
    open_study(study_config(), tmp_path)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""


def test_a_history_that_agrees_with_the_records_is_left_alone(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage)
    study = open_study(config, tmp_path)
    complete, pruned, diverged, failed, _, told_late = balances(study, config, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    study.tell(complete, 0.75)
    pruned.report(0.25, step=2)
    for trial in (pruned, diverged):
        study.tell(trial, state=PRUNED)
    study.tell(failed, state=FAIL)
    rows = [
        balance_record(config, 0.1),
        balance_record(config, 0.2, number=1, status="pruned", accuracy=0.25),
        balance_record(config, 0.3, number=2, status="pruned"),
        balance_record(config, 0.4, number=3, accuracy=float("nan")),  # finished, but with nothing that Optuna could be told
        balance_record(config, 0.6, number=5),  # recorded, and the driver was killed before it told: the searcher does
    ]
    study.enqueue_trial({"regulation.balance": 0.7})  # by the user
    reconciled = reconcile(study, config, by_identity(*rows), resolve_trial)
    assert (reconciled.messages, reconciled.reruns, reconciled.renumbered) == ([], [], {})
    assert states(study) == [COMPLETE, PRUNED, PRUNED, FAIL, RUNNING, RUNNING, WAITING]
    assert told_late.number == 5
    assert count_proposed(study) == 6


def test_a_lost_history_is_made_anew_from_the_records(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, num_trials=6)
    rows = [
        balance_record(config, 0.4, number=4, status="pruned", accuracy=0.25),
        balance_record(config, 0.0, number=0),
        balance_record(config, 0.5, number=1, role="control", accuracy=0.5),  # a control that the search proposed too
        balance_record(config, 0.2, number=2, accuracy=float("inf")),
        balance_record(config, 0.3, number=5, status="failed"),
        balance_record(config, 0.9, number=None, role="control"),
        balance_record(config, 0.8, number=None, role="trial"),
    ]
    study = open_study(config, tmp_path)
    reconciled = reconcile(study, config, by_identity(*rows), resolve_trial)
    assert states(study) == [COMPLETE, COMPLETE, FAIL, PRUNED, FAIL, WAITING]
    assert [trial.value for trial in study.trials] == [0.75, 0.5, None, 0.25, None, None]
    assert study.trials[3].intermediate_values == {2: 0.25}
    assert [trial.params["regulation.balance"] for trial in study.trials[:5]] == [0.0, 0.5, 0.2, 0.4, 0.3]
    assert study.trials[0].user_attrs["identity"] == rows[1].identity
    assert study.trials[3].user_attrs["reason"] == "because"
    assert reconciled.renumbered == {rows[0].identity: 3, rows[4].identity: 4}
    assert reconciled.reruns == []
    assert [sentence.partition(" (")[0] for sentence in reconciled.messages] == [
        "5 trials recorded, but not in Optuna's history",
        "1 trial failed in an earlier run: tried again",
        "2 trials recorded with a number that is not its own in Optuna's history: renumbered",
    ]
    assert count_proposed(study) == 4, "the one that is tried again counts when it is asked for"
    fixed = {row.identity: dataclasses.replace(row, number=reconciled.renumbered.get(row.identity, row.number)) for row in rows}
    again = open_study(config, tmp_path)
    twice = reconcile(again, config, fixed, resolve_trial)
    assert (twice.messages, twice.reruns, twice.renumbered) == ([], [], {})
    assert states(again) == states(study)


def test_a_lost_history_keeps_conditions_and_leaves_out_what_lies_outside(tmp_path: Path) -> None:
    config = study_config(CONDITIONAL)
    rows = [
        record(config, {"regulation.optimizer.name": "adamw", "pretraining.epochs": 1}, number=0),
        record(config, {**SGD, "pretraining.epochs": 3}, number=1),
        record(config, {**SGD, "pretraining.epochs": 4}, number=2),  # off the steps
        record(config, {**SGD, "pretraining.epochs": 3, "drop_path": 0.25}, number=3),  # not searched today
        record(config, {"regulation.optimizer.name": "sgd", "pretraining.epochs": 1}, number=4),  # momentum was fixed
    ]
    study = open_study(config, tmp_path)
    reconciled = reconcile(study, config, by_identity(*rows), resolve_trial)
    assert [list(trial.params) for trial in study.trials] == [
        ["regulation.optimizer.name", "pretraining.epochs"],
        list(CONDITIONAL),
    ]
    assert reconciled.messages[1] == "3 trials recorded, but outside of today's search space: left out of Optuna's history"
    propose(study, config)  # Optuna takes the distributions for those that it is asked for
    assert len(open_study(config, tmp_path).trials) == 3


def test_params_that_the_history_has_otherwise_than_recorded_count_as_recorded(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage)
    study = open_study(config, tmp_path)
    asked, same = balances(study, config, 0.1, 0.2)
    damaged = optuna.trial.create_trial(  # as a flipped bit of a database leaves it
        params={"regulation.balance": 0.6}, distributions=asked.distributions, user_attrs=asked.user_attrs, value=0.75
    )
    study.tell(asked, state=FAIL)
    study.tell(same, 0.75)
    study.add_trial(damaged)
    rows = [balance_record(config, 0.1, number=2), balance_record(config, 0.2, number=1)]
    reconciled = reconcile(study, config, by_identity(*rows), resolve_trial)
    assert reconciled.messages == ["2 trials told otherwise to Optuna than recorded: told again, as recorded"]
    gone = replaced(study.trials)
    assert gone == {0, 2}
    counting = [trial.params["regulation.balance"] for trial in study.trials if trial.number not in gone]
    assert counting == [0.2, 0.1, 0.1]


def test_a_trial_whose_identity_the_history_has_damaged_is_known_by_its_params(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage)
    study = open_study(config, tmp_path)
    (asked,) = balances(study, config, 0.1)
    study.tell(asked, state=FAIL)
    for attributes in ({"identity": "0badcafe0bad"}, {"identitz": "whatever"}):
        study.add_trial(
            optuna.trial.create_trial(params=asked.params, distributions=asked.distributions, user_attrs=attributes, value=0.75)
        )
    study.enqueue_trial(asked.params, user_attrs={REPLACES: 0})
    rows = by_identity(balance_record(config, 0.1, number=1))
    reconciled = reconcile(study, config, rows, resolve_trial)
    assert (reconciled.messages, reconciled.reruns, reconciled.renumbered) == ([], [], {})
    assert len(study.trials) == 4


def test_a_damaged_sqlite_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    config = study_config(optuna_storage=f"sqlite:///{path}")
    study = open_study(config, tmp_path)
    study.tell(*balances(study, config, 0.1), 0.75)
    content = path.read_bytes()
    for damaged in (content[:5000], content.replace(b"FloatDistribution", b"FloetDistribution"), b"SQLate" + content[6:]):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=rf"Move the file away .*{re.escape(str(path))} is not"):
            open_study(config, tmp_path)
    path.write_bytes(content)
    assert len(open_study(config, tmp_path).trials) == 1


# In a database, qmc finds there how far its sequence has come.
@pytest.mark.parametrize(
    ("sampler", "storage"),
    [("random", "journal"), ("tpe", "sqlite"), ("cmaes", "journal"), ("qmc", "journal"), ("qmc", "sqlite")],
    indirect=["storage"],
)
def test_a_sampler_whose_history_was_lost_goes_on_to_new_points(sampler: str, storage: str | None, tmp_path: Path) -> None:
    space: dict[str, Distribution] = {**BALANCE, "drop_path": Float(0.0, 0.5)}
    config = study_config(space, sampler=sampler)
    study = open_study(config, tmp_path / "first")
    first = [propose(study, config).params for _ in range(3)]
    records = by_identity(*(record(config, params, number=number) for number, params in enumerate(first)))
    lost = dataclasses.replace(config, optuna_storage=storage and storage.replace("optuna.db", "other.db"))
    study = open_study(lost, tmp_path / "second")
    reconcile(study, lost, records, resolve_trial)
    more = [propose(study, lost).params for _ in range(2)]
    study = open_study(lost, tmp_path / "second")
    more += [propose(study, lost).params for _ in range(2)]
    assert len({params["drop_path"] for params in [*first, *more]}) == 7


def test_what_optuna_was_told_without_a_record_is_run_again(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage)
    study = open_study(config, tmp_path)
    kept, twin, pruned, failed_later, foreign = balances(study, config, 0.1, 0.1, 0.2, 0.3, 0.4)
    foreign.set_user_attr("identity", "of another configuration")
    for trial in (kept, twin, failed_later, foreign):
        study.tell(trial, 0.5)
    study.tell(pruned, state=PRUNED)
    failed = balance_record(config, 0.3, number=3, status="failed")
    reconciled = reconcile(study, config, by_identity(failed), resolve_trial)
    assert [(rerun.number, rerun.params) for rerun in reconciled.reruns] == [
        (0, {"regulation.balance": 0.1}),
        (2, {"regulation.balance": 0.2}),
        (3, {"regulation.balance": 0.3}),
    ]
    for rerun in reconciled.reruns:
        assert replace_paths(config.trial, rerun.params).identity == rerun.identity
    assert reconciled.messages == [
        "1 trial ended in Optuna's history without a record, with another configuration than today's: left as it is",
        "3 trials ended in Optuna's history without a record: run again",
    ]
    assert len(study.trials) == 5
    assert reconcile(study, config, by_identity(failed), resolve_trial) == reconciled


def test_what_failed_is_tried_again_once_a_run(storage: str | None, tmp_path: Path) -> None:
    config = study_config(CONDITIONAL, optuna_storage=storage, num_trials=2)
    study = open_study(config, tmp_path)
    params = {**SGD, "pretraining.epochs": 3}
    study.tell(propose(study, config, params), state=FAIL)
    invalid = study.ask()
    invalid.set_user_attr(INVALID, "some rule")
    study.tell(invalid, state=FAIL)
    failed = by_identity(record(config, params, status="failed"))
    for _ in range(2):  # a run that is killed before it asks leaves one for the next
        reconcile(study, config, failed, resolve_trial)
        assert states(study) == [FAIL, FAIL, WAITING]
        assert count_proposed(study) == 0
    retry = propose(study, config)
    assert (retry.number, retry.params, retry.user_attrs[REPLACES]) == (2, params, 0)
    assert count_proposed(study) == 1
    study.tell(retry, state=FAIL)
    assert reconcile(study, config, failed, resolve_trial).messages == ["1 trial failed in an earlier run: tried again"]
    retry = propose(study, config)
    assert (retry.params, retry.user_attrs[REPLACES]) == (params, 2)
    study.tell(retry, 0.5)
    finished = by_identity(record(config, params, number=3, accuracy=0.5))
    assert reconcile(study, config, finished, resolve_trial).messages == []
    assert states(study) == [FAIL, FAIL, FAIL, COMPLETE]
    assert count_proposed(study) == 1


def test_a_point_of_the_grid_that_is_tried_again_stays_that_point(tmp_path: Path) -> None:
    config = study_config({"regulation.balance": Choice((0.1, 0.2))}, sampler="grid")
    study = open_study(config, tmp_path)
    point = json.dumps({"regulation.balance": 0.1})
    study.enqueue_trial({"regulation.balance": 0.1}, user_attrs={GRID: point})
    study.tell(propose(study, config), state=FAIL)
    reconcile(study, config, {}, resolve_trial)
    assert [trial.user_attrs[GRID] for trial in study.trials] == [point, point]
    lost = open_study(config, tmp_path / "new")
    reconcile(lost, config, by_identity(balance_record(config, 0.2)), resolve_trial)
    assert lost.trials[0].user_attrs[GRID] == json.dumps({"regulation.balance": 0.2})


@pytest.mark.parametrize(
    ("told", "recorded", "expected", "storage"),
    [  # each of the three endings that are told again in both storages
        ((FAIL, None), {}, (COMPLETE, 0.75), "sqlite"),
        ((PRUNED, None), {}, (COMPLETE, 0.75), "journal"),
        ((COMPLETE, 0.5), {}, (COMPLETE, 0.75), "journal"),
        ((COMPLETE, 0.75), {"status": "pruned", "accuracy": 0.25}, (PRUNED, 0.25), "sqlite"),
        ((FAIL, None), {"status": "pruned", "accuracy": 0.25}, (PRUNED, 0.25), "journal"),
        ((COMPLETE, 0.75), {"accuracy": float("nan")}, (FAIL, None), "sqlite"),
        ((COMPLETE, 0.75), {"accuracy": float("nan")}, (FAIL, None), "journal"),
    ],
    indirect=["storage"],
)
def test_the_records_correct_what_optuna_was_told(
    told: Any, recorded: Any, expected: Any, storage: str | None, tmp_path: Path
) -> None:
    config = study_config(optuna_storage=storage)
    study = open_study(config, tmp_path)
    for trial in balances(study, config, 0.1, 0.1):
        state, value = told
        study.tell(trial, value, state=state)
    records = by_identity(balance_record(config, 0.1, **recorded))
    reconciled = reconcile(study, config, records, resolve_trial)
    assert reconciled.messages == ["2 trials told otherwise to Optuna than recorded: told again, as recorded"]
    assert (reconciled.reruns, reconciled.renumbered) == ([], {})
    corrected = study.trials[2:]
    assert [(trial.state, trial.value) for trial in corrected] == [expected] * 2
    assert [trial.user_attrs[REPLACES] for trial in corrected] == [0, 1]
    assert [trial.params for trial in corrected] == [{"regulation.balance": 0.1}] * 2
    assert count_proposed(study) == 2
    assert reconcile(open_study(config, tmp_path), config, records, resolve_trial).messages == []
    assert len(study.trials) == 4


def test_several_objectives_are_corrected_and_restored(storage: str | None, tmp_path: Path) -> None:
    config = study_config(optuna_storage=storage, objectives=TWO)
    study = open_study(config, tmp_path)
    right, wrong, pruned = balances(study, config, 0.1, 0.2, 0.3)
    study.tell(right, [0.75, 10.0])
    study.tell(wrong, [0.75, 11.0])
    study.tell(pruned, state=PRUNED)
    rows = [balance_record(config, balance, number=number) for number, balance in enumerate((0.1, 0.2))]
    rows += [balance_record(config, balance, number=number, status="pruned") for number, balance in ((2, 0.3), (3, 0.4))]
    reconcile(study, config, by_identity(*rows), resolve_trial)
    assert [(trial.state, trial.values, trial.user_attrs.get(REPLACES)) for trial in study.trials[3:]] == [
        (PRUNED, None, None),
        (COMPLETE, [0.75, 10.0], 1),
    ]
    assert {trial.number for trial in study.best_trials} == {0, 4}


def test_warm_start_learns_each_trial_once(storage: str | None, tmp_path: Path, folder_of: Any) -> None:
    config = study_config(optuna_storage=storage, sampler="tpe", name="new", warm_start_from=("old", f"{tmp_path}/older"))
    rows = [
        balance_record(config, 0.1, number=0, accuracy=0.5),
        balance_record(config, 0.2, number=1, status="pruned", accuracy=0.25),
        balance_record(config, 0.3, number=2, status="failed"),
        balance_record(config, 0.4, number=3, accuracy=float("nan")),
        balance_record(config, 0.5, number=None, role="control"),
        balance_record(config, 0.6, number=None, role="trial"),
        record(config, {"control": "plain"}, number=None, role="control"),
    ]
    write_study(tmp_path / "old", *rows)
    write_study(tmp_path / "older", balance_record(config, 0.7, number=7))
    check_warm_start(config, folder_of)
    study = open_study(config, tmp_path / "new")
    assert warm_start(study, config, folder_of, resolve_trial) == [
        "trials taken from 'old' for the sampler to learn from: 2 finished, 1 pruned, left out 1 without a finite objective",
        "trials taken from 'older' for the sampler to learn from: 1 finished",
    ]
    assert [(trial.params["regulation.balance"], trial.state, trial.value) for trial in study.trials] == [
        (0.1, COMPLETE, 0.5),
        (0.2, PRUNED, 0.25),
        (0.5, COMPLETE, 0.75),
        (0.7, COMPLETE, 0.75),
    ]
    assert study.trials[1].intermediate_values == {2: 0.25}
    assert study.trials[0].user_attrs[WARM_START] == f"old/{rows[0].identity}"
    assert count_proposed(study) == 0
    assert reconcile(study, config, {}, resolve_trial).messages == []
    study = open_study(config, tmp_path / "new")
    assert warm_start(study, config, folder_of, resolve_trial) == []
    assert len(study.trials) == 4
    own = propose(study, config, {"regulation.balance": 0.1})
    assert (own.number, count_proposed(study)) == (4, 1)
    write_study(tmp_path / "older", balance_record(config, 0.8, number=8))
    assert warm_start(study, config, folder_of, resolve_trial) == [
        "trials taken from 'older' for the sampler to learn from: 1 finished"
    ]


def test_warm_start_reads_configurations_whatever_was_searched_there(tmp_path: Path, folder_of: Any) -> None:
    trial = replace_paths(TrialConfig(), {"regulation.epochs": 3, "pretraining.epochs": 5, "stimuli.name": "emoji"})
    old = study_config({**BALANCE, "drop_path": Choice((0.0, 0.25))}, trial=trial)
    new = study_config(CONDITIONAL, sampler="tpe", objectives=TWO, name="new", warm_start_from=("old",))
    rows = [
        record(old, {"regulation.balance": 0.1, "drop_path": 0.25}, number=0, seconds=4.0),
        record(old, {**SGD, "pretraining.epochs": 3}, number=1, seconds=5.0),
        record(old, {**SGD, "pretraining.epochs": 4}, number=2),  # off the steps
        record(old, {**SGD, "regulation.optimizer.momentum": 0.97}, number=3),  # above the range
        record(old, {"pretraining.epochs": 9}, number=4, status="pruned"),
    ]
    write_study(tmp_path / "old", *rows)
    study = open_study(new, tmp_path / "new")
    taken, hint = warm_start(study, new, folder_of, resolve_trial)
    assert [(trial.state, trial.params, trial.values) for trial in study.trials] == [
        (COMPLETE, {"regulation.optimizer.name": "adamw", "pretraining.epochs": 5}, [0.75, 4.0]),
        (COMPLETE, {**SGD, "pretraining.epochs": 3}, [0.75, 5.0]),
        (PRUNED, {"regulation.optimizer.name": "adamw", "pretraining.epochs": 9}, None),
    ]
    assert taken.endswith(": 2 finished, 1 pruned, left out 2 outside of this search space")
    assert hint == (
        "they are only a hint: in 'old' drop_path was 0.25 (here 0.0), regulation.balance was 0.1 (here 0.5), "
        'regulation.epochs was 3 (here 10), stimuli.name was "emoji" (here "openmoji")'
    )
    propose(study, new)
    assert count_proposed(study) == 1


def test_warm_start_says_that_images_or_trainer_are_others(tmp_path: Path, folder_of: Any) -> None:
    config = study_config(name="new", warm_start_from=("old",))
    write_study(tmp_path / "old", balance_record(config, 0.1), balance_record(config, 0.2, number=1))
    for name, task, version in (("old", "abc", 1), ("new", "xyz", 2)):
        path = write_study_json(tmp_path / name, config) / "study.json"
        rows = [["digits", None, None, 16, task], ["openmoji", None, None, 16, "def"]]
        changed = {"fingerprints": rows, "trainer": {"pretraining": 1, "regulation": version}}
        path.write_bytes(seal(unseal(path.read_bytes()) | changed))
    said = warm_start(open_study(config, tmp_path / "new"), config, folder_of, resolve_trial)
    assert said[1:] == [
        'they are only a hint: in \'old\' fingerprint of digits was "abc" (here "xyz"), trainer of regulation was 1 (here 2)',
        "the sampler 'random' does not learn from trials of other studies: tpe and gp do",
    ]


def test_a_warm_start_that_gives_nothing_says_so(tmp_path: Path, folder_of: Any) -> None:
    config = study_config({"regulation.balance": Float(0.0, 0.25)}, name="new", warm_start_from=("old",))
    write_study(tmp_path / "old", balance_record(config, 0.5))
    study = open_study(config, tmp_path / "new")
    assert warm_start(study, config, folder_of, resolve_trial) == [
        "trials taken from 'old' for the sampler to learn from: none, left out 1 outside of this search space"
    ]
    assert study.trials == []


@pytest.mark.parametrize(
    ("sampler", "storage"),
    [("tpe", "sqlite"), ("gp", "journal"), ("random", "journal"), ("nsga2", "journal")],
    indirect=["storage"],
)
def test_which_samplers_go_on_from_a_warm_start(sampler: str, storage: str | None, tmp_path: Path, folder_of: Any) -> None:
    cold = study_config(sampler=sampler, startup=5, name="cold", optuna_storage=storage)
    warm = dataclasses.replace(cold, name="warm", warm_start_from=("old",))
    points = [index / 20 for index in range(21)]
    rows = [balance_record(cold, point, number=number, accuracy=1 - abs(point - 0.8)) for number, point in enumerate(points)]
    write_study(tmp_path / "old", *rows)

    def proposed(config: StudyConfig) -> Any:
        study = open_study(config, tmp_path / config.name)
        said = warm_start(study, config, folder_of, resolve_trial)
        return propose(study, config).params["regulation.balance"], said

    (cold_balance, _), (warm_balance, said) = proposed(cold), proposed(warm)
    assert any("does not learn" in sentence for sentence in said) == (warm_balance == cold_balance)
    if sampler in ("tpe", "gp"):
        assert abs(warm_balance - 0.8) < 0.05 < abs(cold_balance - 0.8), "no random ones first: the warm start has them"


@pytest.mark.parametrize("entry", ["new", "./new"])
def test_a_study_does_not_learn_from_itself(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    config = study_config(name="new", warm_start_from=(entry,))
    write_study(tmp_path / "new", balance_record(config, 0.1))
    with pytest.raises(ConfigError, match=rf"--name: .* must name other studies, but '{entry}' is this one"):
        check_warm_start(config, folder_of)


def test_a_study_without_records_is_refused_with_those_that_have_some(tmp_path: Path, folder_of: Any) -> None:
    config = study_config(name="new", warm_start_from=("old", "olt"))
    write_study(tmp_path / "old", balance_record(config, 0.1))
    with pytest.raises(
        ConfigError, match=r"Name one of \['old'\], or a folder .* studies that have records, but 'olt' has none"
    ):
        check_warm_start(config, folder_of)
    study = open_study(config, tmp_path / "new")
    with pytest.raises(ConfigError, match="'olt'"):
        warm_start(study, config, folder_of, resolve_trial)
    assert study.trials == [], "refused before anything is taken"


def test_a_restart_of_postgresql_breaks_no_transaction(database: str, postgresql: Any, tmp_path: Path) -> None:
    study = open_study(study_config(optuna_storage=database), tmp_path)
    restarting = threading.Thread(target=lambda: (postgresql.stop(), postgresql.start()))
    restarting.start()
    asked = 0
    while restarting.is_alive():
        trial = study.ask()
        trial.set_user_attr("number", asked)
        study.tell(trial, 0.5)
        asked += 1
    assert asked > 0
    backend: Any = study._storage
    assert [trial.user_attrs["number"] for trial in study.trials] == list(range(asked))
    backend._backend.engine.dispose()  # its connections are to be closed by hand


@pytest.mark.parametrize("broken_off", [OperationalError("select", {}, Exception("gone")), PendingRollbackError("roll back")])
def test_a_transaction_that_the_server_broke_off_is_done_again(broken_off: Exception) -> None:
    attempts = []

    def transaction(storage: object) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise StorageInternalError("an exception during the commit") from broken_off
        return "done"

    assert _retrying(transaction)(_RetryingStorage("sqlite://")) == "done"
    assert len(attempts) == 2


def test_what_is_done_within_a_transaction_is_not_tried_again_by_itself() -> None:
    """Its session stays broken until the whole is rolled back."""
    attempts = []

    def inner(storage: object) -> str:
        attempts.append("inner")
        if len(attempts) == 2:
            raise PendingRollbackError("roll back")
        return "done"

    def outer(storage: _RetryingStorage) -> str:
        attempts.append("outer")
        return str(_retrying(inner)(storage))

    assert _retrying(outer)(_RetryingStorage("sqlite://")) == "done"
    assert attempts == ["outer", "inner"] * 2


def test_another_fault_of_the_storage_is_not_tried_again() -> None:
    attempts = []

    def transaction(storage: object) -> None:
        attempts.append(1)
        raise StorageInternalError("an exception during the commit") from ValueError("too long")

    with pytest.raises(StorageInternalError):
        _retrying(transaction)(_RetryingStorage("sqlite://"))
    assert len(attempts) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_journal_needs_no_symbolic_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def symlink(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", symlink)
    study = open_study(study_config(), tmp_path)
    study.tell(study.ask(), 0.5)
    assert [trial.value for trial in open_study(study_config(), tmp_path).trials] == [0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.journal"]


def test_an_outage_of_the_history_is_the_server_s_own_error_for_whoever_asks_next() -> None:
    """Locks and history share the outage of a server, and the former know its errors, not Optuna's."""

    def transaction(storage: object) -> str:
        raise StorageInternalError("an exception during the commit") from OperationalError("select", {}, Exception("gone"))

    storage = _RetryingStorage("sqlite://")
    storage.patience = Patience(0.0)
    with pytest.raises(OperationalError):
        _retrying(transaction)(storage)
    with pytest.raises(OperationalError):
        storage.patience.retry(lambda: "an answer", when=lambda _: False, reason=no_answer(storage.engine.url))
