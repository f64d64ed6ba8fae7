"""Constraints stand in the annotations of a configuration's fields; ``validate`` reads them, and writes what is wrong.

A message begins with what to do, then names the constraint and the value that breaks it:
"Give a number above 0: pretraining.batch_size must be above 0, but it is 0".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval

from emoreg.config.registry import Registry
from emoreg.config.secrets import is_percent_encoded, without_secrets
from emoreg.errors import ConfigError

Positive = Annotated[float, Interval(gt=0)]
NotNegative = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
PositiveInt = Annotated[int, Interval(gt=0)]
NotNegativeInt = Annotated[int, Interval(ge=0)]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint of one value, beside annotated-types' ``Interval``: what must hold, in words, and what to do otherwise."""

    holds: Callable[[Any], bool]
    text: str
    hint: str


DISTINCT = Constraint(lambda values: len(set(values)) == len(values), "must differ", "drop doubles")


def not_empty(hint: str) -> Constraint:
    """The constraint that a text, a tuple or a mapping has something in it."""
    return Constraint(bool, "must not be empty", hint)


def matches(pattern: str, text: str, hint: str) -> Constraint:
    """The constraint that the whole of a text matches a regular expression, which ``text`` describes."""
    return Constraint(lambda value: re.fullmatch(pattern, value) is not None, text, hint)


class StoredName(str):
    """A name as it was read from disk: what it names was registered where it was written, and need not be here."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """Constraint of a name: it is one of ``registry``, or was read from disk."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Have pydantic read what is not registered here as a ``StoredName``."""
        from pydantic_core import core_schema

        def read(name: str) -> str:
            return name if name in self.registry else StoredName(name)

        return core_schema.no_info_after_validator_function(read, handler(source))


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint between settings of one configuration.

    Attributes:
        setting: the path, from the configuration, whose value is named.
        holds: whether the configuration keeps the rule.
        constraint: what the setting must be; ``{c}`` stands for the configuration.
        hint: what to do.
    """

    setting: str
    holds: Callable[[Any], bool]
    constraint: str
    hint: str


def require(condition: bool, constraint: str, value: object, hint: str) -> None:
    """Raise a ``ConfigError`` that says what to do, the constraint and the value given, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{hint[:1].upper()}{hint[1:]}: {constraint}, but it is {without_secrets(repr(value))}")


def require_database_url(path: str, url: str) -> None:
    """Raise a ``ConfigError``, without the password, for a URL that SQLAlchemy would read otherwise than it is meant."""
    scheme = f"{url.partition('://')[0][:20]}://..."
    require(
        scheme != "postgres://...", f"{path} must name its kind of database as SQLAlchemy does", scheme, "write postgresql://"
    )
    hint = "write @ as %40, / as %2F and a blank as %20 in the password"
    require(is_percent_encoded(url), f"the password in {path} must be percent-encoded", scheme, hint)


def validate(config: object, place: str = "", rules: Sequence[Rule] = ()) -> None:
    """Check every field of a configuration against its annotation, then the rules between them.

    Args:
        config: a dataclass.
        place: for messages: the path at which such a configuration stands, or its class where there are several.
        rules: between its settings.

    Raises:
        ConfigError: for the first value of a wrong type, or that breaks a constraint.
    """
    prefix = f"{place}." if place else ""
    for name, expected in expectations(type(config)).items():
        expected.check(f"{prefix}{name}", getattr(config, name))
    for rule in rules:
        if not rule.holds(config):
            constraint = f"{prefix}{rule.setting} {rule.constraint.format(c=config)}"
            require(False, constraint, attrgetter(rule.setting)(config), rule.hint)


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What an annotation expects of a value.

    Attributes:
        types: one of which the value has.
        values: one of which it is, for a ``Literal``; else empty.
        is_optional: whether it may be None.
        constraints: that it keeps.
        registry: that has it as a name.
        items: what is expected of each item of a tuple, or value of a mapping.
    """

    types: tuple[type, ...]
    values: tuple[Any, ...] = ()
    is_optional: bool = False
    constraints: tuple[Constraint, ...] = ()
    registry: Registry[Any] | None = None
    items: Expected | None = None

    def check(self, path: str, value: Any) -> None:
        """Check a value: its type, its constraints, then its items.

        Raises:
            ConfigError: naming ``path``.
        """
        if value is None and self.is_optional:
            return
        if self.values and value not in self.values:
            require(False, f"{path} must be one of these", value, f"choose one of {', '.join(map(str, self.values))}")
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            names = " or ".join(sorted(kind.__name__ for kind in self.types))
            require(False, f"{path} must be {names}", value, f"give {names}")
        for constraint in self.constraints:
            require(constraint.holds(value), f"{path} {constraint.text}", value, constraint.hint)
        if self.registry is not None and not isinstance(value, StoredName):
            self.registry.require(value, of=path)
        if self.items is not None:
            for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                self.items.check(f"{path}.{key}", item)


def expectations(kind: Any) -> Mapping[str, Expected]:
    """What the annotations of a dataclass's fields expect, by name."""
    return _expectations(kind)


@functools.cache
def _expectations(kind: Any) -> Mapping[str, Expected]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: _expected(hints[item.name]) for item in dataclasses.fields(kind)}


def _expected(annotation: Any) -> Expected:
    metadata = getattr(annotation, "__metadata__", ())
    kind = annotation.__origin__ if metadata else annotation
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return Expected(types=(object,), values=arguments)
    options = arguments if origin in (Union, UnionType) else (kind,)
    some = [option for option in options if option is not NoneType]
    if len(some) < len(options) and len(some) == 1:
        return dataclasses.replace(_expected(some[0]), is_optional=True)
    types = tuple(get_origin(option) or option for option in some)
    constraints = [_of_interval(item) if isinstance(item, Interval) else item for item in metadata]
    return Expected(
        types=(*types, int) if float in types and int not in types else types,
        is_optional=len(some) < len(options),
        constraints=tuple(item for item in constraints if isinstance(item, Constraint)),
        registry=next((item.registry for item in metadata if isinstance(item, Registered)), None),
        items=_expected(arguments[origin is Mapping]) if origin in (tuple, Mapping) else None,
    )


def _of_interval(interval: Interval) -> Constraint:
    """A finite number within an interval that has an end below, and perhaps one above."""
    gt, ge, lt, le = interval.gt, interval.ge, interval.lt, interval.le

    def holds(value: Any) -> bool:
        above = value > gt if gt is not None else value >= ge
        return math.isfinite(value) and above and (lt is None or value < lt) and (le is None or value <= le)

    if lt is None and le is None:
        text, hint = (f"above {gt}", f"a number above {gt}") if ge is None else (f"{ge} or more", f"{ge} or more")
        return Constraint(holds, f"must be {text}", f"give {hint}")
    text = f"{f'[{ge}' if gt is None else f'({gt}'}, {f'{le}]' if lt is None else f'{lt})'}"
    return Constraint(holds, f"must lie in {text}", f"choose a number in {text}")
