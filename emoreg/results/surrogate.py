"""Where accuracy is highest, and how sure that is: a Gaussian process over the searched parameters of one backbone.

Kernel and posterior: Rasmussen & Williams, *Gaussian Processes for Machine Learning* (2006), algorithm 2.1 and section 4.2
(Matérn 5/2, a length scale a parameter), hyperparameters by the marginal likelihood (section 5.4). A curve against one
parameter is the partial dependence (Friedman 2001): the mean over what the trials had for the other parameters. It is
linear in the process, so its posterior is a Gaussian whose covariance is exact, and draws from it say where its highest
point may lie.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from emoreg.config import Choice, Distribution, Int, Value
from emoreg.results.records import TrialRecord

FEWEST = 5
"""Finished trials below which nothing is fitted."""
MOST = 400
"""Trials that are fitted; of more, so many at random."""
_LEARNED_FROM = 150  # of these, what the kernel's hyperparameters are learned from: its cost grows with their cube
COVERAGE = 0.9
"""Of every band and interval made from a surrogate."""
_BAND = 1.6449  # standard deviations on each side that hold 90 % of a Gaussian
_NUM_POINTS = {1: 61, 2: 21}  # of a parameter, by the number of parameters that a response is over
_EVALUATIONS = 4000  # points at which the process is averaged for one response: its cost grows with their square
_BLOCK = 500
_NUM_DRAWS = 1000
_LOG_FROM = 4  # choices of numbers that span this factor are spaced by their logarithm


def value_of(record: TrialRecord, path: str) -> Value | None:
    """What a trial had at ``path``: as sampled, or as configured where the search did not ask for it."""
    params = record.sampled
    if path in params:
        return params[path]
    value: Any = json.loads(record.config)
    for name in path.split("."):
        value = value[name]
    found: Value | None = value
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A searched parameter as the process sees it: a number scaled to [0, 1], or a choice, one-hot."""

    path: str
    distribution: Distribution

    @property
    def is_number(self) -> bool:
        """Whether its values can be put on an axis."""
        return not isinstance(self.distribution, Choice) or all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.distribution.values
        )

    @property
    def is_log(self) -> bool:
        """Whether the axis is logarithmic."""
        if not isinstance(self.distribution, Choice):
            return self.distribution.log
        low, high = self.range if self.is_number else (0.0, 0.0)
        return 0 < _LOG_FROM * low <= high

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of a number."""
        bounds = [float(value) for value in self.distribution.bounds()]
        return min(bounds), max(bounds)

    def grid(self, num_points: int) -> np.ndarray:
        """Values of a number that a trial could have, over its whole range."""
        if isinstance(self.distribution, Choice):
            return np.array(sorted(float(value) for value in self.distribution.values))
        low, high = self.range
        if self.is_log:
            values = np.geomspace(low, high, num_points)
            return np.unique(np.round(values)) if isinstance(self.distribution, Int) else values
        step = self.distribution.step
        if not step:
            return np.linspace(low, high, num_points)
        last = math.floor((high - low) / step + 1e-9)
        return low + step * np.unique(np.round(np.linspace(0, last, min(num_points, last + 1))))

    def encoded(self, values: Sequence[Value | None] | np.ndarray) -> np.ndarray:
        """Shape (number of values, 1) for a number, else (number of values, number of choices)."""
        if not self.is_number:
            return np.array([[float(value == choice) for choice in self.distribution.bounds()] for value in values])
        scale = np.log if self.is_log else np.asarray
        low, high = scale(np.array(self.range))
        numbers = np.array([float(value or 0.0) for value in values])
        if self.is_log:
            numbers = np.maximum(numbers, self.range[0])  # configured where the search did not ask: perhaps 0, or nothing
        numbers = scale(numbers)
        return np.asarray((numbers - low) / (high - low if high > low else 1.0))[:, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """Where a parameter's best value lies: median and 90 % interval over draws of the response."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """Accuracy against one or two parameters, over the others' values of the trials.

    Attributes:
        points: values of the parameters, shape (points, parameters).
        mean: posterior mean of the accuracy in [0, 1], shape (points,).
        covariance: of the same, shape (points, points).
    """

    points: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def half_width(self) -> np.ndarray:
        """Half the width of the 90 % band around the mean, shape (points,)."""
        return np.asarray(_BAND * np.sqrt(np.clip(np.diag(self.covariance), 0.0, None)))

    def optimum(self) -> tuple[Optimum, ...]:
        """Where the response is highest, by parameter."""
        values, vectors = np.linalg.eigh(self.covariance)
        noise = np.random.default_rng(0).standard_normal((_NUM_DRAWS, len(values)))
        draws = self.mean + noise @ (vectors * np.sqrt(np.clip(values, 0.0, None))).T
        best = self.points[draws.argmax(axis=1)]
        tail = (1 - COVERAGE) / 2
        low, middle, high = np.quantile(best, [tail, 0.5, 1 - tail], axis=0)
        return tuple(Optimum(value=float(m), low=float(a), high=float(b)) for a, m, b in zip(low, middle, high, strict=True))


class Surrogate:
    """A Gaussian process fitted to the finished trials of one backbone."""

    def __init__(self, records: Sequence[TrialRecord], space: Mapping[str, Distribution]) -> None:
        """Take finished trials of one backbone, each with an accuracy; they are fitted when a response is asked for."""
        assert len(records) >= FEWEST
        self.num_trials = len(records)
        chosen = np.random.default_rng(0).permutation(len(records))[:MOST]
        fitted = [records[index] for index in sorted(chosen)]
        self.num_fitted = len(fitted)
        self._inputs = np.empty((len(fitted), 0))
        self._varied: dict[str, tuple[Parameter, int]] = {}  # by path, with the first of its columns
        for path, distribution in space.items():
            parameter = Parameter(path=path, distribution=distribution)
            columns = parameter.encoded([value_of(record, path) for record in fitted])
            if np.ptp(columns, axis=0).any():
                self._varied[path] = parameter, self._inputs.shape[1]
                self._inputs = np.hstack([self._inputs, columns])
        self._accuracies = np.array([record.val_accuracy for record in fitted])
        self._center, self._scale = float(self._accuracies.mean()), float(self._accuracies.std()) or 1.0

    @functools.cached_property
    def _process(self) -> Any:
        return _fit(self._inputs, (self._accuracies - self._center) / self._scale)

    def has(self, path: str) -> bool:
        """Whether it knows how accuracy goes with this parameter: a number that varied."""
        return path in self._varied and self._varied[path][0].is_number

    def response(self, *paths: str) -> Response:
        """Accuracy against one or two parameters that it ``has``."""
        asked = [self._varied[path] for path in paths]
        grids = [parameter.grid(_NUM_POINTS[len(paths)]) for parameter, _ in asked]
        points = np.stack([axis.ravel() for axis in np.meshgrid(*grids, indexing="ij")], axis=1)
        others = self._inputs.copy()
        others[:, [column for _, column in asked]] = 0.0
        if not np.ptp(others, axis=0).any():
            others = others[:1]
        chosen = np.random.default_rng(0).permutation(len(others))[: max(1, _EVALUATIONS // len(points))]
        inputs = np.repeat(others[None, chosen], len(points), axis=0)  # points, values of the others, columns
        for (parameter, column), values in zip(asked, points.T, strict=True):
            inputs[:, :, column] = parameter.encoded(values)
        return self._averaged(points, inputs)

    def _averaged(self, points: np.ndarray, inputs: np.ndarray) -> Response:
        signal = self._process.kernel_.k1  # without the noise of a single trial
        num_points, num_others, _ = inputs.shape
        flat = inputs.reshape(num_points * num_others, -1)
        cross, prior = [], []
        rows = max(1, _BLOCK // num_others)
        for start in range(0, num_points, rows):
            block = inputs[start : start + rows].reshape(-1, inputs.shape[2])
            cross.append(signal(block, self._inputs).reshape(-1, num_others, len(self._inputs)).mean(axis=1))
            prior.append(signal(block, flat).reshape(-1, num_others, num_points, num_others).mean(axis=(1, 3)))
        to_trials = np.vstack(cross)
        explained = solve_triangular(self._process.L_, to_trials.T, lower=True)
        covariance = np.vstack(prior) - explained.T @ explained
        return Response(
            points=points,
            mean=self._center + self._scale * (to_trials @ self._process.alpha_),
            covariance=self._scale**2 * (covariance + covariance.T) / 2,
        )


def _fit(inputs: np.ndarray, targets: np.ndarray) -> Any:
    signal = ConstantKernel(1.0, (1e-2, 1e2)) * Matern([1.0] * inputs.shape[1], (0.1, 10.0), nu=2.5)
    process = GaussianProcessRegressor(signal + WhiteKernel(0.1, (1e-3, 10.0)), n_restarts_optimizer=1, random_state=0)
    order = np.sort(np.random.default_rng(1).permutation(len(inputs))[:_LEARNED_FROM])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter without effect drives its length scale to the bound
        process.fit(inputs[order], targets[order])
    if len(order) == len(inputs):
        return process
    # on all of them, with what was learned
    return GaussianProcessRegressor(process.kernel_, optimizer=None).fit(inputs, targets)
