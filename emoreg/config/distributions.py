"""What a search space is made of: a real number, a whole number, or one of a few values, perhaps in one branch only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

from emoreg.config.paths import Value
from emoreg.config.validation import DISTINCT, Positive, PositiveInt, Rule, not_empty, validate

_Values = Annotated[tuple[Value, ...], not_empty("name at least one")]


@dataclass(frozen=True, slots=True)
class When:
    """A branch of the search space: the parameter exists only where ``path`` holds one of ``values``.

    Example:
        >>> import emoreg
        >>> emoreg.Float(0.0, 0.2, when=emoreg.When("backbone", ("vit_tiny",))).when.path
        'backbone'
    """

    path: str
    values: _Values

    def __post_init__(self) -> None:
        validate(self, "When")


def _range_rules(no_step: int | None) -> tuple[Rule, ...]:
    return (
        Rule("low", lambda c: c.low <= c.high, "must not be above high, {c.high!r}", "swap them"),
        Rule("low", lambda c: not c.log or c.low > 0, "must be above 0 for log=True", "raise it, or use log=False"),
        Rule("step", lambda c: not c.log or c.step == no_step, "goes without log=True", "choose one of log and step"),
    )


_FLOAT_RULES, _INT_RULES = _range_rules(None), _range_rules(1)


@dataclass(frozen=True, slots=True)
class Float:
    """A real number in [low, high], uniform or uniform in the logarithm, or on a grid of ``step``.

    Example:
        >>> import emoreg
        >>> emoreg.Float(1e-4, 1e-2, log=True).bounds()
        (0.0001, 0.01)
    """

    low: float
    high: float
    log: bool = field(default=False, kw_only=True)
    step: Positive | None = field(default=None, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, number in (("low", self.low), ("high", self.high), ("step", self.step)):
            if isinstance(number, int):  # what is written down tells a Float from an Int
                object.__setattr__(self, name, float(number))
        validate(self, "Float", _FLOAT_RULES)

    def bounds(self) -> tuple[Value, ...]:
        """The ends of the range."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number in [low, high], uniform or uniform in the logarithm, or on a grid of ``step``.

    Example:
        >>> import emoreg
        >>> emoreg.Int(5, 80, log=True).bounds()
        (5, 80)
    """

    low: int
    high: int
    log: bool = field(default=False, kw_only=True)
    step: PositiveInt = field(default=1, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        validate(self, "Int", _INT_RULES)

    def bounds(self) -> tuple[Value, ...]:
        """The ends of the range."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values.

    Example:
        >>> import emoreg
        >>> emoreg.Choice(("resnet18", "vit_tiny")).values
        ('resnet18', 'vit_tiny')
    """

    values: Annotated[_Values, DISTINCT]
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        validate(self, "Choice")

    def bounds(self) -> tuple[Value, ...]:
        """Every value: each must be valid."""
        return self.values


Distribution = Int | Float | Choice
"""In this order: what JSON has is read as the first that takes it, and Int does not take 1.0."""


def steps(distribution: Float | Int) -> Sequence[Any]:
    """The values from low to high by step; high itself only where a step ends there."""
    if isinstance(distribution, Int):
        return range(distribution.low, distribution.high + 1, distribution.step)
    # In decimals, so that 0 to 1 by 0.1 ends at 1.0 and holds 0.3 rather than 0.30000000000000004.
    low, high, step = (Decimal(str(value)) for value in (distribution.low, distribution.high, distribution.step or 1.0))
    return tuple(float(low + index * step) for index in range(int((high - low) / step) + 1))
