"""Metrics beside accuracy and loss: functions of the scores on a split of the task.

Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from emoreg.config.registry import METRICS
from emoreg.training.learners import Evaluation

Metric = Callable[[Float[Tensor, "N C"], Int[Tensor, " N"]], float]


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


def measure(names: Iterable[str], evaluation: Evaluation, *, split: str) -> dict[str, float]:
    """Measure registered metrics on ``split``, "val" or "test", which ``evaluation`` is of; by column."""
    functions = {f"{split}_{name}": METRICS.require(name, of="metrics") for name in names}
    return {column: float(function(evaluation.scores, evaluation.targets)) for column, function in functions.items()}
