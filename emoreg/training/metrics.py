"""Metrics beside accuracy and loss: of the scores on a split of the task, and of the values that stimuli are estimated to have.

Legend: N images, C classes, T real-valued targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.config.registry import METRICS
from emoreg.results.records import Stage
from emoreg.training.learners import Evaluation

_NUM_BINS = 15

Metric = Callable[[Float[Tensor, "N C"], Int[Tensor, " N"]], float]


@dataclass(frozen=True, slots=True)
class ValueMetric:
    """An entry of ``METRICS`` that compares estimates with one real-valued target of the stimuli, after pre-training."""

    target: str
    function: Callable[[Float[Tensor, " N"], Float[Tensor, " N"]], float]


def metric(name: str) -> Callable[[Metric], Metric]:
    """Register the decorated function as a metric, for ``TrialConfig.metrics`` and, as ``val_NAME``, for objectives.

    It takes the scores of a split's images (logits, or log-probabilities if probabilities are mixed) and their classes, both on
    the CPU, and returns a number.

    Example:
        >>> import emoreg
        >>> @emoreg.metric("worst_recall")
        ... def worst_recall(scores, targets):
        ...     hits = scores.argmax(dim=1) == targets
        ...     return min(hits[targets == label].double().mean().item() for label in targets.unique())
        >>> emoreg.Objective(metric="val_worst_recall").mode
        'max'
    """
    return partial(METRICS.add, name)


def stage_of_metric(name: str) -> Stage:
    """The stage after whose epochs a metric is measured."""
    return "pretraining" if isinstance(METRICS.get(name), ValueMetric) else "regulation"


def measure(names: Iterable[str], evaluation: Evaluation, *, split: str) -> dict[str, float]:
    """Measure the metrics of classes among those named on ``split``, "val" or "test", which ``evaluation`` is of; by column."""
    named = {f"{split}_{name}": METRICS.require(name, of="metrics") for name in names}
    functions = {column: entry for column, entry in named.items() if not isinstance(entry, ValueMetric)}
    return {column: float(function(evaluation.scores, evaluation.targets)) for column, function in functions.items()}


def measure_values(targets: Sequence[str], evaluation: Evaluation) -> dict[str, float]:
    """Measure every registered metric of these real-valued targets, which are the columns of ``evaluation``; by column.

    A trial may take its experience from another one, which does not know what it names: so all are measured, always.
    """
    columns = dict(zip(targets, zip(evaluation.scores.double().T, evaluation.targets.double().T, strict=True), strict=True))
    entries = {name: entry for name, entry in METRICS.items() if isinstance(entry, ValueMetric) and entry.target in columns}
    return {f"val_{name}": float(entry.function(*columns[entry.target])) for name, entry in entries.items()}


@metric("balanced_accuracy")
def balanced_accuracy(scores: Float[Tensor, "N C"], targets: Int[Tensor, " N"]) -> float:
    """Mean recall over the classes that the split has."""
    hits = scores.argmax(dim=1) == targets
    return _mean(hits[targets == label].double().mean() for label in targets.unique())


@metric("macro_f1")
def macro_f1(scores: Float[Tensor, "N C"], targets: Int[Tensor, " N"]) -> float:
    """Mean F1 over the classes that the split or the predictions have."""
    predicted = scores.argmax(dim=1)
    pairs = [(predicted == label, targets == label) for label in torch.cat([predicted, targets]).unique()]
    return _mean(2 * (found & true).sum() / (found.sum() + true.sum()) for found, true in pairs)


@metric("auroc")
def auroc(scores: Float[Tensor, "N C"], targets: Int[Tensor, " N"]) -> float:
    """Mean area under the ROC curve, each class that the split has against the rest; not a number where it has but one."""
    probabilities = scores.double().softmax(dim=1)
    areas = []
    for label in targets.unique():
        true = targets == label
        positives, negatives = int(true.sum()), int((~true).sum())
        if not negatives:
            return math.nan
        _, place, counts = probabilities[:, label].unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[place].double()  # equal ones share theirs
        areas.append((ranks[true].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return _mean(areas)


@metric("nll")
def nll(scores: Float[Tensor, "N C"], targets: Int[Tensor, " N"]) -> float:
    """Mean negative log-likelihood of the classes."""
    return float(F.cross_entropy(scores.double(), targets))


@metric("ece")
def ece(scores: Float[Tensor, "N C"], targets: Int[Tensor, " N"]) -> float:
    """Expected calibration error (Guo et al. 2017): mean distance of confidence and accuracy over 15 bins of equal width."""
    confidence, predicted = scores.double().softmax(dim=1).max(dim=1)
    bins = (confidence * _NUM_BINS).ceil().long().clamp(1, _NUM_BINS) - 1  # (0, 1/15], (1/15, 2/15], ...
    excess = confidence - (predicted == targets).double()
    sums = torch.zeros(_NUM_BINS, dtype=torch.float64).index_add_(0, bins, excess)
    return float(sums.abs().sum()) / len(targets)


def pearson(estimates: Float[Tensor, " N"], targets: Float[Tensor, " N"]) -> float:
    """Pearson's correlation; not a number where one of the two is constant."""
    estimates, targets = estimates - estimates.mean(), targets - targets.mean()
    return float((estimates * targets).sum() / (estimates.square().sum() * targets.square().sum()).sqrt())


def ccc(estimates: Float[Tensor, " N"], targets: Float[Tensor, " N"]) -> float:
    """Concordance correlation coefficient (Lin 1989): 1 where the estimates are the targets, and not just go with them."""
    covariance = ((estimates - estimates.mean()) * (targets - targets.mean())).mean()
    variances = estimates.var(correction=0) + targets.var(correction=0)
    return float(2 * covariance / (variances + (estimates.mean() - targets.mean()).square()))


for _target in ("valence", "arousal"):
    METRICS.add(f"{_target}_pearson", ValueMetric(_target, pearson))
    METRICS.add(f"{_target}_ccc", ValueMetric(_target, ccc))


def _mean(values: Iterable[Tensor]) -> float:
    return float(torch.stack([*values]).double().mean())
