from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from emoreg.config import Choice, Distribution, Float, Int, Value
from emoreg.results import surrogate
from emoreg.results.records import TrialRecord
from emoreg.results.study import load_results
from emoreg.results.surrogate import FEWEST, Parameter, Surrogate, value_of
from tests.helpers.written import OPTIMUM, made_up_config, write_study

BALANCE, LENGTH, RATE = "regulation.balance", "pretraining.epochs", "regulation.optimizer.learning_rate"
SPACE: Mapping[str, Distribution] = {BALANCE: Float(0.0, 1.0), LENGTH: Int(2, 32, log=True)}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> TrialRecord:
    """A finished trial to make others of."""
    config = made_up_config(num_trials=2)
    return load_results(write_study(tmp_path_factory.mktemp("runs"), config, num_seeds=0)).searched[0]


def trials(
    record: TrialRecord, num: int, truth: Callable[[float, int], float], noise: float = 0.002, seed: int = 1, **more: Value
) -> list[TrialRecord]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        balance, length = float(random.uniform()), int(2 ** random.uniform(1, 5))
        params = json.dumps({BALANCE: balance, LENGTH: length, **more})
        accuracy = truth(balance, length) + random.normal(0, noise)
        found.append(dataclasses.replace(record, params=params, val_accuracy=accuracy))
    return found


def hill(balance: float, length: int) -> float:
    return 0.8 - 0.1 * (balance - OPTIMUM) ** 2 + 0.01 * math.log2(length)


def test_the_optimum_is_found_with_its_uncertainty(record: TrialRecord) -> None:
    response = Surrogate(trials(record, 40, hill), SPACE).response(BALANCE)
    (found,) = response.optimum()
    assert found.low < OPTIMUM < found.high
    assert found.high - found.low < 0.3
    assert abs(found.value - OPTIMUM) < 0.1
    assert response.points.shape == (31, 1)


def test_the_curve_is_the_truth_averaged_over_the_other_parameter(record: TrialRecord) -> None:
    records = trials(record, 60, hill)
    response = Surrogate(records, SPACE).response(BALANCE)
    over_lengths = np.mean([math.log2(json.loads(row.params)[LENGTH]) for row in records])
    truth = 0.8 - 0.1 * (response.points[:, 0] - OPTIMUM) ** 2 + 0.01 * over_lengths
    assert np.abs(response.mean - truth).max() < 0.002
    assert np.all(np.abs(response.mean - truth) < 2 * response.half_width)


def cliff(balance: float, length: int) -> float:
    return 0.8 - 0.5 * max(0.0, balance - 0.7) + 0.005 * math.log2(length)


def level(balance: float, length: int) -> float:
    return 0.7


@pytest.mark.slow
@pytest.mark.parametrize("noise", [pytest.param(0.003, marks=pytest.mark.soak), 0.01])
def test_bands_hold_the_truth_as_often_as_they_say(record: TrialRecord, noise: float) -> None:
    shares = []
    for truth, seed in itertools.product((hill, cliff, level), range(40)):
        records = trials(record, 30, truth, noise, seed=seed)
        response = Surrogate(records, SPACE).response(BALANCE)
        lengths = [json.loads(row.params)[LENGTH] for row in records]
        curve = np.array([np.mean([truth(balance, length) for length in lengths]) for balance in response.points[:, 0]])
        shares.append(np.mean(np.abs(response.mean - curve) < response.half_width))
    assert np.mean(shares) > 0.85


def test_fewer_trials_are_less_sure(record: TrialRecord) -> None:
    widths = [Surrogate(trials(record, num, hill), SPACE).response(BALANCE).half_width.mean() for num in (8, 80)]
    assert widths[0] > 1.5 * widths[1]


def test_noise_alone_has_no_optimum(record: TrialRecord) -> None:
    (found,) = Surrogate(trials(record, 30, lambda balance, length: 0.7), SPACE).response(BALANCE).optimum()
    assert found.high - found.low > 0.5


def test_a_length_that_always_pays_has_its_optimum_at_the_end(record: TrialRecord) -> None:
    (found,) = Surrogate(trials(record, 60, hill), SPACE).response(LENGTH).optimum()
    assert found.value > 20


def test_both_parameters_have_an_optimum_each(record: TrialRecord) -> None:
    response = Surrogate(trials(record, 60, hill), SPACE).response(BALANCE, LENGTH)
    balance, length = response.optimum()
    assert response.mean.shape == (len(response.points),)
    assert response.covariance.shape == (len(response.points), len(response.points))
    assert balance.low <= OPTIMUM <= balance.high
    assert length.value > 16


def test_points_of_a_parameter_are_values_that_a_trial_could_have() -> None:
    assert Parameter(path=LENGTH, distribution=Int(2, 6)).grid(61).tolist() == [2, 3, 4, 5, 6]
    assert Parameter(path=LENGTH, distribution=Choice((8, 2, 4))).grid(61).tolist() == [2, 4, 8]
    assert Parameter(path=RATE, distribution=Float(1e-4, 1e-2, log=True)).grid(3) == pytest.approx([1e-4, 1e-3, 1e-2])


def test_parameters_are_scaled_or_one_hot() -> None:
    rate = Parameter(path=RATE, distribution=Float(1e-4, 1e-2, log=True))
    assert rate.encoded([1e-4, 1e-3, 1e-2]).ravel() == pytest.approx([0, 0.5, 1])
    assert rate.encoded([None, 0.0]).ravel().tolist() == [0, 0]  # as configured where the search did not ask
    form = Parameter(path="regulation.form", distribution=Choice(("output", "loss")))
    assert form.encoded(["loss", "output"]).tolist() == [[0, 1], [1, 0]]
    assert not form.is_number
    assert not Parameter(path="deterministic", distribution=Choice((True, False))).is_number


@pytest.mark.parametrize(
    ("distribution", "is_log"),
    [(Choice((2, 4, 8)), True), (Choice((2, 3)), False), (Choice((0, 8)), False), (Int(2, 32, log=True), True)],
)
def test_lengths_are_spaced_by_their_logarithm(distribution: Distribution, is_log: bool) -> None:
    assert Parameter(path=LENGTH, distribution=distribution).is_log == is_log


def test_what_the_search_did_not_ask_for_is_read_from_the_configuration(record: TrialRecord) -> None:
    assert value_of(dataclasses.replace(record, params="{}"), RATE) == 0.001
    assert value_of(dataclasses.replace(record, params=json.dumps({RATE: 0.5})), RATE) == 0.5


def test_a_parameter_that_never_varied_is_not_known(record: TrialRecord) -> None:
    space = {**SPACE, "regulation.form": Choice(("output", "loss")), RATE: Float(1e-4, 1e-2)}
    found = Surrogate(trials(record, FEWEST, hill), space)
    assert found.has(BALANCE)
    assert not found.has(RATE)
    assert not found.has("regulation.form")


def test_equal_accuracies_and_a_choice_are_no_trouble(record: TrialRecord) -> None:
    space = {**SPACE, "regulation.form": Choice(("output", "loss"))}
    rows = [
        dataclasses.replace(row, val_accuracy=0.5, params=json.dumps({**json.loads(row.params), "regulation.form": form}))
        for row, form in zip(trials(record, 6, hill), ("output", "loss") * 3, strict=True)
    ]
    response = Surrogate(rows, space).response(BALANCE)
    assert response.mean == pytest.approx(np.full(len(response.mean), 0.5))


def test_of_many_trials_some_are_fitted_and_the_same_every_time(record: TrialRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "MOST", 40)
    monkeypatch.setattr(surrogate, "_LEARNED_FROM", 20)
    rows = trials(record, 50, hill)
    first, second = Surrogate(rows, SPACE), Surrogate(rows, SPACE)
    assert (first.num_fitted, first.num_trials) == (40, 50)
    assert np.array_equal(first.response(BALANCE).mean, second.response(BALANCE).mean)


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (Int(0, 20, step=10), [0, 10, 20]),
        (Int(1, 6, step=2), [1, 3, 5]),
        (Float(0.0, 1.0, step=0.25), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Int(0, 1000, step=100), [0, 200, 500, 800, 1000]),
        (Int(1, 16, log=True), [1, 2, 4, 8, 16]),
        (Float(0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_a_grid_has_values_that_a_trial_could_have(distribution: Int | Float, values: list[float]) -> None:
    grid = Parameter(path="x", distribution=distribution).grid(5)
    np.testing.assert_allclose(grid, values)
