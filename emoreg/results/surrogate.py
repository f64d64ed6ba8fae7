"""Where accuracy is highest, and how sure that is: a Gaussian process over the searched parameters of one backbone.

Kernel and posterior: Rasmussen & Williams, *Gaussian Processes for Machine Learning* (2006), algorithm 2.1 and section 4.2
(Matérn 5/2, a length scale a parameter). Its hyperparameters are not fitted but averaged over, as drawn from their posterior
(section 5.2; random-walk Metropolis): simulated bands of fitted ones held the truth in 75 to 88 % of points at 30 trials and
56 to 82 % at 10, where they say 90. A curve against one parameter is the partial dependence (Friedman 2001): the mean over what
the trials had for the other parameters. It is linear in the process, so its posterior is a Gaussian for each draw, and draws
from all together say where its highest point may lie.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from emoreg.config import Choice, Distribution, Int, Value
from emoreg.results.records import TrialRecord

FEWEST = 5
"""Finished trials below which nothing is fitted."""
FEWEST_FOR_OPTIMUM = 30
"""Finished trials of a backbone below which neither an optimum nor importances are told: of fewer, noise has some too."""
MOST = 400
"""Trials that are fitted; of more, so many at random."""
_LEARNED_FROM = 150  # of these, what the kernel's hyperparameters are learned from: its cost grows with their cube
COVERAGE = 0.9
"""Of every band and interval made from a surrogate."""
_BAND = 1.6449  # standard deviations on each side that hold 90 % of a Gaussian
_NUM_POINTS = {1: 31, 2: 21}  # of a parameter, by the number of parameters that a response is over
_EVALUATIONS = 1500  # points at which the process is averaged for one response: its cost grows with their square
_JITTER = 1e-8
_NUM_DRAWS = 1000
_NUM_KERNELS, _WARM_UP, _THINNING = 12, 60, 15  # draws of the hyperparameters, the steps before the first and between two
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
    def _processes(self) -> list[GaussianProcessRegressor]:
        """One for each draw of the hyperparameters, given the trials."""
        targets = (self._accuracies - self._center) / self._scale
        kernels = _draw_kernels(self._inputs, targets)
        return [GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(self._inputs, targets) for kernel in kernels]

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
        means, covariances = zip(*(_averaged(process, inputs) for process in self._processes), strict=True)
        covariance = np.mean(covariances, axis=0) + np.cov(np.transpose(means), bias=True)  # within draws and between them
        return Response(
            points=points,
            mean=self._center + self._scale * np.mean(means, axis=0),
            covariance=self._scale**2 * (covariance + covariance.T) / 2,
        )


def _averaged(process: GaussianProcessRegressor, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at points, each the mean over rows: of inputs of shape (points, rows, columns)."""
    signal = process.kernel_.k1  # without the noise of a single trial
    num_points, num_rows, _ = inputs.shape
    flat = inputs.reshape(num_points * num_rows, -1)
    to_trials = signal(flat, process.X_train_).reshape(num_points, num_rows, -1).mean(axis=1)
    prior = signal(flat).reshape(num_points, num_rows, num_points, num_rows).mean(axis=(1, 3))
    explained = solve_triangular(process.L_, to_trials.T, lower=True)
    return to_trials @ process.alpha_, prior - explained.T @ explained


def _draw_kernels(inputs: np.ndarray, targets: np.ndarray) -> list[Any]:
    """Kernels from the posterior of their hyperparameters, for targets of mean 0 and standard deviation 1.

    The prior is Gaussian on their logarithms. Within two standard deviations lie signals of 0.14 to 7.4 and noise of 0.03 to
    1.5 of the targets' variance, and length scales of 0.1 to 1.6 of a parameter's range. The mean is not known either.
    """
    num_columns, random = inputs.shape[1], np.random.default_rng(0)
    signal = ConstantKernel() * Matern([1.0] * num_columns, nu=2.5)
    kernel = ConstantKernel(1.0, "fixed") + signal + WhiteKernel()
    some = np.sort(np.random.default_rng(1).permutation(len(inputs))[:_LEARNED_FROM])
    process = GaussianProcessRegressor(kernel, optimizer=None, alpha=_JITTER).fit(inputs[some], targets[some])
    center = np.log([1.0, *[0.4] * num_columns, 0.2])
    deviation = np.array([1.0, *[0.7] * num_columns, 1.0])

    def log_posterior(theta: np.ndarray) -> float:
        prior = -0.5 * float((((theta - center) / deviation) ** 2).sum())
        return float(process.log_marginal_likelihood(theta, clone_kernel=False)) + prior

    theta, current, kernels = center, log_posterior(center), []
    for step in range(1, _WARM_UP + _NUM_KERNELS * _THINNING + 1):
        proposed = theta + 0.9 / math.sqrt(len(theta)) * deviation * random.standard_normal(len(theta))
        there = log_posterior(proposed)
        if math.log(random.uniform()) < there - current:
            theta, current = proposed, there
        if step > _WARM_UP and step % _THINNING == 0:
            kernels.append(kernel.clone_with_theta(theta))
    return kernels


def forest_r_squared(inputs: np.ndarray, values: np.ndarray) -> float:
    """R squared of a forest's predictions for trials that it has not seen (out of bag); below 0, their mean is better.

    ``inputs`` are N trials by D parameters, ``values`` what the trials came to.
    """
    forest = RandomForestRegressor(n_estimators=200, oob_score=True, random_state=0).fit(inputs, values)
    return float(forest.oob_score_)
