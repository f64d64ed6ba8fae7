"""Values that a person chooses for searched paths, held against the search space."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

from emoreg.config.distributions import Choice, Distribution, Float, Int, steps
from emoreg.config.paths import Value
from emoreg.errors import ConfigError


def parse_values(texts: Iterable[str]) -> dict[str, Value]:
    """The texts ``PATH=VALUE`` as a mapping, to be read by ``check_values``.

    Raises:
        ConfigError: for one of another form.
    """
    values: dict[str, Value] = {}
    for text in texts:
        path, is_given, value = text.partition("=")
        if not (path and is_given and value):
            raise ConfigError(f"Write PATH=VALUE, as in regulation.balance=0.3: a value must have its path, but it is {text!r}")
        values[path] = value
    return values


def check_values(space: Mapping[str, Distribution], values: Mapping[str, Value]) -> dict[str, Value]:
    """The values as the distributions of their paths have them; texts, as a command line has them, are read.

    Raises:
        ConfigError: for a path that is not searched, a value that its distribution does not have, or one that no trial could
            have beside the others.
    """
    checked = {path: _checked(space, path, value) for path, value in values.items()}
    for path in checked:
        when = space[path].when
        if when is not None and when.path in checked and checked[when.path] not in when.values:
            raise ConfigError(
                f"Drop {path}, or choose another {when.path}: it is searched only where {when.path} is one of "
                f"{', '.join(map(str, when.values))}, but it is {checked[when.path]!r}"
            )
    return checked


def _checked(space: Mapping[str, Distribution], path: str, value: Value) -> Value:
    if path not in space:
        near = difflib.get_close_matches(path, space, n=3, cutoff=0.4) or [*space]
        raise ConfigError(
            f"Name a path such as {' or '.join(near)}: it must be one that the study searches, but it is {path!r}"
        )
    distribution = space[path]
    found = _as_choice(distribution, value) if isinstance(distribution, Choice) else _as_number(distribution, value)
    if found is None:
        raise ConfigError(f"Choose {_asked(distribution)}: {path} must be a value that is searched, but it is {value!r}")
    return found


def _as_choice(distribution: Choice, value: Value) -> Value | None:
    """The choice that is the value, or is written so."""
    for choice in distribution.values:
        if str(choice).lower() == str(value).lower() or (choice == value and not isinstance(value, bool | str)):
            return choice
    return None


def _as_number(distribution: Float | Int, value: Value) -> Value | None:
    """The number that the value is, or is written as, if it lies within the range and on a step."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except ValueError:
        return None
    if isinstance(distribution, Float) and distribution.step is None:
        return number if distribution.low <= number <= distribution.high else None
    return next((step for step in steps(distribution) if math.isclose(step, number, rel_tol=1e-9)), None)


def _asked(distribution: Distribution) -> str:
    if isinstance(distribution, Choice):
        return f"one of {', '.join(map(str, distribution.values))}"
    step = "" if distribution.step in (None, 1) else f" by steps of {distribution.step:g} from {distribution.low:g}"
    kind = "a number" if isinstance(distribution, Float) else "a whole number"
    return f"{kind} in [{distribution.low:g}, {distribution.high:g}]{step}"
