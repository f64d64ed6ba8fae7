from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from emoreg.config import Objective, TrialConfig
from emoreg.results.analysis import best_by_backbone, better, control_rows, estimate, pareto_front
from tests.helpers.studies import ended
from tests.helpers.trials import TINY, tiny

ACCURACY, LOSS, SECONDS = Objective(), Objective(metric="loss", mode="min"), Objective(metric="device_seconds", mode="min")


def control(name: str, seed: int, accuracy: float, backbone: str = "test_resnet") -> TrialConfig:
    return replace(TINY, control=name, seed=seed, backbone=backbone)  # type: ignore[arg-type]


def test_estimate_is_students_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    found = estimate(values)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.7225)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((interval.low, interval.high))
    assert found.n == 4
    assert str(found) == "72.2 ± 4.4"


def test_estimate_of_two_values_by_hand() -> None:
    # t(0.975, df=1) = 12.706; s = sqrt(2) / 2 * |a - b|; s / sqrt(2) = |a - b| / 2
    assert estimate([0.4, 0.6]).half_width == pytest.approx(12.7062 * 0.1, rel=1e-4)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert estimate([0.5]).half_width is None
    assert str(estimate([0.5])) == "50.0"
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert estimate([0.5, 0.5, 0.5]).half_width == 0.0


@pytest.mark.parametrize(
    ("objective", "good", "bad"),
    [
        (ACCURACY, ended(accuracy=0.6), ended(accuracy=0.5)),
        (LOSS, ended(loss=0.5), ended(loss=0.6)),
        (SECONDS, ended(seconds=1.0), ended(seconds=2.0)),
        (ACCURACY, ended(accuracy=0.0), ended(status="pruned")),
    ],
)
def test_better(objective: Objective, good: object, bad: object) -> None:
    assert better(good, bad, objective)  # type: ignore[arg-type]
    assert not better(bad, good, objective)  # type: ignore[arg-type]
    assert not better(good, good, objective)  # type: ignore[arg-type]


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
        replace(base, identity=f"{number:012x}", accuracy=accuracy, loss=loss, device_seconds=seconds)
        for number, (accuracy, loss, seconds) in enumerate(values.tolist())
    ]
    costs = values * (-1, 1, 1)
    is_beaten = [bool(np.any((costs <= cost).all(axis=1) & (costs != cost).any(axis=1))) for cost in costs]
    expected = [trial for trial, beaten in zip(trials, is_beaten, strict=True) if not beaten]
    assert pareto_front(trials, (ACCURACY, LOSS, SECONDS)) == expected
    assert 10 < len(expected) < 100
