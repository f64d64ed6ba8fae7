from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import emoreg
from emoreg.config import CONTROLS, Objective, StudyConfig, TrialConfig, from_json, resolve_trial, to_json
from emoreg.results.analysis import (
    PretrainingEpochs,
    Tally,
    best_by_backbone,
    device_time,
    num_planned,
    objective_value,
    pareto_front,
    pretraining_epochs,
)
from emoreg.results.confirmation import control_rows
from emoreg.results.records import EpochRecord, TrialRecord
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY, tiny
from tests.helpers.written import epoch_record


def registered(metric: str) -> Objective:
    return Objective(metric=metric, mode="min")


ACCURACY, LOSS, SECONDS = Objective(), Objective(metric="val_loss", mode="min"), Objective(metric="device_seconds", mode="min")


def control(name: str, seed: int, accuracy: float, backbone: str = "test_resnet") -> TrialConfig:
    return replace(TINY, control=name, seed=seed, backbone=backbone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "trial", "value"),
    [
        (ACCURACY, ended(accuracy=0.6), 0.6),
        (LOSS, ended(loss=0.5), 0.5),
        (SECONDS, ended(seconds=2.0), 2.0),
        (ACCURACY, ended(status="pruned"), None),
        (ACCURACY, ended(accuracy=math.nan), None),
        (registered("val_f1"), replace(ended(), metrics='{"val_f1": 0.7}'), 0.7),
        (registered("val_f1"), ended(), None),
    ],
)
def test_an_objective_is_a_column_or_a_registered_metric(objective: Objective, trial: TrialRecord, value: float | None) -> None:
    assert objective_value(trial, objective) == value


def test_a_registered_metric_can_lead_a_search() -> None:
    trials = [replace(ended(tiny(seed=seed)), metrics=f'{{"val_f1": {f1}}}') for seed, f1 in enumerate((0.4, 0.2, 0.3))]
    assert best_by_backbone(trials, registered("val_f1"))["test_resnet"].seed == 1


def test_a_tally_counts_what_is_the_studys_and_knows_the_best_so_far() -> None:
    beside = ended(control("plain", 0, 0.9), role="control", accuracy=0.9)
    stray = ended(tiny(seed=8), role="trial", accuracy=0.95)
    tally = Tally(ACCURACY, {beside.identity})
    first, second, third = (ended(tiny(seed=seed), accuracy=a) for seed, a in enumerate((0.5, 0.7, 0.6), 1))
    assert [tally.add(trial) for trial in (first, beside, stray, second, third)] == [True, False, False, True, False]
    failed = ended(tiny(seed=4), status="failed")
    tally.add(failed)
    assert (tally.best, len(tally.trials)) == (second, 5)
    assert tally.statuses == {"finished": 4, "failed": 1}
    tally.add(replace(failed, status="finished", val_accuracy=0.4))
    assert tally.statuses == {"finished": 5}, "a trial that is run again is one trial"
    best = Tally(LOSS, set(), [ended(tiny(seed=1), loss=0.5), ended(tiny(seed=2), loss=0.4)]).best
    assert best is not None
    assert best.seed == 2


def test_controls_that_are_one_trial_are_planned_once() -> None:
    study = tiny_study(trial=replace(TINY, pretraining=replace(TINY.pretraining, epochs=0)), num_trials=7)
    assert num_planned(replace(study, controls=("regulated", "plain", "untrained"))) == 7 + 3
    assert num_planned(replace(study, controls=("regulated",), control_seeds=(0, 1))) == 7 + 2


def test_a_study_is_counted_where_its_control_is_not_registered() -> None:
    @emoreg.control("of a study file", description="a seed of its own")
    def own(trial: TrialConfig) -> TrialConfig:
        return replace(trial, seed=7)

    study = tiny_study(num_trials=7, controls=("plain", "of a study file"), control_seeds=(0, 1))
    written = json.dumps(to_json(study))
    assert num_planned(study) == 7 + 2 + 1, "its seeds are one trial"
    CONTROLS._entries.pop("of a study file")
    assert num_planned(from_json(StudyConfig, json.loads(written))) == 7 + 2 + 2, "which cannot be known here"


def test_device_time_is_what_was_paid_and_what_was_not_paid_again() -> None:
    paid = ended(tiny(seed=1), seconds=8.0)
    reused = replace(ended(tiny(seed=2), seconds=8.0), pretraining_seconds=0.5)
    found = device_time([paid, reused])
    assert (found.paid, found.reused, found.regulation, found.total) == (2.5, 1.5, 12.0, 14.5)
    assert found.saved == pytest.approx(1.5 / 4.0)
    assert device_time([]).saved == 0.0


def test_best_is_among_finished_searched_trials_of_each_backbone() -> None:
    vit = tiny(backbone="test_vit")
    records = [
        ended(tiny(seed=1), accuracy=0.6),
        ended(tiny(seed=2), accuracy=0.7),
        ended(tiny(seed=3), accuracy=0.9, role="control"),
        ended(tiny(seed=4), accuracy=0.9, role="trial"),
        ended(tiny(seed=5), status="pruned"),
        ended(vit, accuracy=0.2),
        ended(replace(vit, seed=6), accuracy=0.1, role="control", number=3),  # a control that the search proposed too
    ]
    assert {name: record.val_accuracy for name, record in best_by_backbone(records, ACCURACY).items()} == {
        "test_resnet": 0.7,
        "test_vit": 0.2,
    }


def test_pareto_front_keeps_what_nothing_dominates() -> None:
    points = [(0.9, 9.0), (0.8, 5.0), (0.7, 6.0), (0.6, 1.0), (0.6, 2.0), (0.8, 5.0)]
    records = [ended(tiny(seed=seed), accuracy=a, seconds=s) for seed, (a, s) in enumerate(points)]
    records.append(ended(tiny(seed=9), role="control", accuracy=1.0, seconds=0.1))
    assert [record.seed for record in pareto_front(records, (ACCURACY, SECONDS))] == [0, 1, 3, 5]


def test_gains_are_paired_by_seed() -> None:
    accuracies = {"regulated": {0: 0.70, 1: 0.80, 2: 0.90}, "plain": {0: 0.60, 1: 0.71, 3: 0.10}}
    records = [
        ended(control(name, seed, value), role="control", accuracy=value)
        for name, by_seed in accuracies.items()
        for seed, value in by_seed.items()
    ]
    regulation, plain = control_rows(records)
    assert (regulation.control, regulation.gain, regulation.accuracy.mean) == ("regulated", None, pytest.approx(0.8))
    assert plain.gain is not None
    assert plain.gain.n == 2, "seed 3 has no regulation to be paired with, seed 2 no control"
    assert plain.gain.mean == pytest.approx((0.10 + 0.09) / 2)
    assert plain.accuracy.n == 3


def test_a_control_without_a_common_seed_has_no_gain() -> None:
    records = [ended(control("regulated", 0, 0.5), role="control"), ended(control("plain", 1, 0.5), role="control")]
    assert [row.gain for row in control_rows(records)] == [None, None]


def test_controls_come_in_one_order_whichever_ended_first() -> None:
    names = ("shuffled", "plain", "regulated", "untrained", "emotional")
    records = [
        ended(control(name, 0, 0.5, backbone), role="control") for backbone in ("test_vit", "test_resnet") for name in names
    ]
    order = ["regulated", "plain", "emotional", "untrained", "shuffled"]
    assert [(row.backbone, row.control) for row in control_rows(records)] == [
        (backbone, name) for backbone in ("test_resnet", "test_vit") for name in order
    ]


def test_neither_torch_nor_ray_is_needed() -> None:
    script = "import sys; import emoreg.results.analysis; print({'torch', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_the_front_of_thousands_is_found_soon_and_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    base = ended(number=0, accuracy=0.5)
    values = np.round(random.uniform(size=(400, 3)), 2)  # with ties
    trials = [
        replace(base, identity=f"{number:012x}", val_accuracy=accuracy, val_loss=loss, device_seconds=seconds)
        for number, (accuracy, loss, seconds) in enumerate(values.tolist())
    ]
    costs = values * (-1, 1, 1)
    is_beaten = [bool(np.any((costs <= cost).all(axis=1) & (costs != cost).any(axis=1))) for cost in costs]
    expected = [trial for trial, beaten in zip(trials, is_beaten, strict=True) if not beaten]
    assert pareto_front(trials, (ACCURACY, LOSS, SECONDS)) == expected
    assert 10 < len(expected) < 100


def told(config: TrialConfig, epoch: int, *, stage: str = "pretraining") -> EpochRecord:
    return epoch_record(resolve_trial(config), stage, epoch, 0.5)


def test_what_was_asked_for_what_was_computed_and_what_had_to_be() -> None:
    short, long = tiny(pretraining__epochs=2), tiny(pretraining__epochs=3, regulation__balance=0.25)
    plain, lost = tiny(control="plain"), tiny(pretraining__epochs=9)
    rows = [ended(config) for config in (short, long, plain, lost)]
    rows[2:] = [replace(row, experience_seconds=None) for row in rows[2:]]
    epochs = [told(short, 1), told(short, 2), told(long, 3), told(long, 1, stage="regulation")]
    assert pretraining_epochs(rows, epochs) == PretrainingEpochs(asked=5, computed=3, least=3)
    paid_twice = [*epochs, told(long, 1), told(long, 2)]
    assert pretraining_epochs(rows, paid_twice) == PretrainingEpochs(asked=5, computed=5, least=3)
    assert pretraining_epochs((), ()) == PretrainingEpochs(asked=0, computed=0, least=0)
