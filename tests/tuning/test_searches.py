"""Controls with searches of their own: as many trials each, side by side, in one history, and only what is missing again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from emoreg.config import Choice, Float, ImageSetConfig, SchedulerConfig, StudyConfig
from emoreg.config.arms import arms
from emoreg.config.resolved import resolve_trial
from emoreg.results.analysis import num_planned
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.tuning.arms import searching_arms
from emoreg.tuning.optuna_study import open_beside, open_study
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.scheduling import AmongPeers, scheduler_of
from emoreg.tuning.source import OptunaSource, Searches
from tests.helpers.studies import tiny_study
from tests.helpers.trials import TINY
from tests.tuning.test_dispatcher import Alone, completed

STUDY = tiny_study(
    num_trials=2,
    controls_search="required",
    controls=(),
    search_space={
        "regulation.balance": Float(0.1, 0.9),
        "pretraining.epochs": Choice((1, 2)),
        "regulation.optimizer.learning_rate": Float(1e-4, 1e-2, log=True),
    },
)
TUNED = [arm.trial.control for arm in arms(STUDY)]


def open_searches(config: StudyConfig, folder: Path, records: Records) -> tuple[Searches, optuna.Study]:
    history = open_study(config, folder)
    create = partial(
        OptunaSource,
        resolved=resolve_trial,
        records=records.trials,
        coordinator=Alone(),  # type: ignore[arg-type]
        inbox=None,
        notify=print,
        on_repeat=lambda job: None,
    )
    sources = [create(history, config)]
    sources += [create(open_beside(history, arm), arm, search_of=arm.trial.control) for arm in arms(config)]
    return Searches(sources), history


def run(searches: Searches, records: Records, most: int = 1000) -> list[str]:
    """Run proposals one after the other; the searches that they were of."""
    order = []
    for _ in range(most):
        if searches.is_exhausted:
            break
        job = searches.ask()
        if job is None:
            continue
        outcome = completed(0.5)
        record = TrialRecord.of(
            job.trial,
            outcome,
            role=job.role,
            number=job.number,
            params=job.params,
            search_of=job.search_of,
            device="CPU",
            started="",
        )
        records.add_trial(record)
        searches.tell(job.identity, outcome)
        order.append(job.search_of or "regulated")
        assert job.trial.config.control == order[-1]
    return order


def test_every_arm_has_as_many_trials_and_none_runs_ahead(tmp_path: Path) -> None:
    assert TUNED == ["plain", "compute_matched", "ensemble", "untrained", "shuffled"]
    records = Records(tmp_path)
    order = run(open_searches(STUDY, tmp_path, records)[0], records)
    assert Counter(order) == dict.fromkeys(("regulated", *TUNED), STUDY.num_trials)
    assert order[: len(TUNED) + 1] == ["regulated", *TUNED], "in turn"
    assert len(records.trials) == num_planned(STUDY)


def test_what_is_searched_again_is_what_is_missing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = run(open_searches(STUDY, tmp_path, records)[0], records, most=7)
    searches, history = open_searches(STUDY, tmp_path, records)  # as after a kill
    assert searches.take_up() == []
    assert Counter(first + run(searches, records)) == dict.fromkeys(("regulated", *TUNED), STUDY.num_trials)
    names = {summary.study_name for summary in optuna.get_all_study_summaries(history._storage)}
    assert names == {"tiny", *(f"tiny/{control}" for control in TUNED)}, "all in one storage"
    assert run(open_searches(STUDY, tmp_path, records)[0], records) == []


def test_the_matched_control_is_searched_with_the_passes_of_the_trial_as_configured() -> None:
    def images(role: str, _: ImageSetConfig) -> int:
        return {"task": 100, "stimuli": 40}[role]

    (matched,) = [arm for arm in searching_arms(STUDY, images) if arm.trial.control == "compute_matched"]
    epochs = 2 * TINY.regulation.epochs + -(-TINY.pretraining.epochs * 40 // 100)
    assert matched.trial.regulation.epochs == epochs


class Told:
    """A scheduler that keeps what it is told of."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.trials: list[object] = []

    def on_trial_add(self, controller: object, trial: object) -> None:
        self.trials.append(trial)


def test_trials_are_compared_with_their_like_alone() -> None:
    made: list[Told] = []

    def create(epochs: int) -> Told:
        made.append(Told(epochs))
        return made[-1]

    among = AmongPeers(create)  # type: ignore[arg-type]
    for search_of, backbone in (
        (None, "test_resnet"), ("plain", "test_resnet"), (None, "test_vit"), (None, "test_resnet"), ("plain", "test_resnet")
    ):  # fmt: skip
        among.on_trial_add(None, assigned(search_of, backbone))
    assert [len(found.trials) for found in made] == [2, 2, 1]
    assert {found.epochs for found in made} == {TINY.regulation.epochs}


def assigned(search_of: str | None, backbone: str) -> object:
    trial = resolve_trial(dataclasses.replace(TINY, backbone=backbone))
    return SimpleNamespace(config={JOB: Job(trial=trial, role="search", number=0, search_of=search_of)})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_both_schedulers_compare_among_peers(name: str) -> None:
    assert isinstance(scheduler_of(tiny_study(scheduler=SchedulerConfig(name=name))), AmongPeers)  # type: ignore[arg-type]
