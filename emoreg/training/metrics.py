"""Metrics beside accuracy and loss: functions of the scores on a split of the task.

Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        >>> @emoreg.metric("top3")
        ... def top3(scores, targets):
        ...     return (scores.topk(3).indices == targets[:, None]).any(dim=1).double().mean().item()
        >>> emoreg.Objective(metric="val_top3").metric, emoreg.TrialConfig(metrics=("top3",)).metrics
        ('val_top3', ('top3',))
    """

    def register(function: Metric) -> Metric:
        METRICS.add(name, function)
        return function

    return register


def measure(names: Iterable[str], evaluation: Evaluation, *, split: str) -> dict[str, float]:
    """Measure registered metrics on ``split``, "val" or "test", which ``evaluation`` is of; by column.

    Raises:
        ConfigError: for a metric that is not registered.
    """
    functions = {f"{split}_{name}": METRICS.require(name, of="metrics") for name in names}
    return {column: float(function(evaluation.scores, evaluation.targets)) for column, function in functions.items()}
