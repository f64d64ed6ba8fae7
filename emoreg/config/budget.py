"""What a study may take: hours, device hours, money."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emoreg.config.validation import Positive, Rule, validate


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """What a study may take. It ends before it has taken more, with its trials saved, and goes on when it is run again.

    Example:
        >>> import emoreg
        >>> emoreg.BudgetConfig(device_hours=100, cost=50, price_per_hour=2.5).most_device_hours
        20.0
    """

    hours: Positive | None = None
    """Most wall time of one run. None: no end."""
    device_hours: Positive | None = None
    """Most hours of devices that all runs take together: a trial on half a GPU takes half. None: no end."""
    cost: Positive | None = None
    """Most money that all runs take together, at price_per_hour. None: no end."""
    price_per_hour: Positive | None = None
    """What an hour of the device costs."""

    def __post_init__(self) -> None:
        validate(self, "budget", _BUDGET_RULES)

    @property
    def most_device_hours(self) -> float:
        """What ``device_hours`` and ``cost`` allow together; infinite where both are None."""
        by_cost = None if self.cost is None or self.price_per_hour is None else self.cost / self.price_per_hour
        return min((limit for limit in (self.device_hours, by_cost) if limit is not None), default=math.inf)


_BUDGET_RULES = (
    Rule(
        "price_per_hour",
        lambda c: c.cost is None or c.price_per_hour is not None,
        "must be given for a cost, which it makes of device hours",
        "give what an hour of the device costs",
    ),
)
