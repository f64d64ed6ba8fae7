"""Configurations, and other frozen dataclasses, as JSON and back. pydantic reads them, and is imported only for that."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar

from emoreg.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def to_json(config: Any) -> Any:
    """What JSON has of a dataclass: dictionaries, lists, texts and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[T], values: Any) -> T:
    """What ``to_json`` made a value of: settings that came later have their defaults.

    A control may be named that is not registered here: it can be read and drawn, and not run.

    Args:
        kind: a dataclass, or any type of them, such as ``tuple[TrialConfig, ...]``.
        values: from JSON.

    Raises:
        ConfigError: for settings that there are none of, values of a wrong type, or that break a rule.
    """
    from pydantic import ValidationError

    hashable: Any = kind
    adapter: TypeAdapter[T] = _adapter(hashable)
    try:
        return adapter.validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        raise _config_error(error) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _config_error(error: ValidationError) -> ConfigError:
    faults = error.errors(include_url=False)
    unknown = sorted({_path(fault) for fault in faults if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument")})
    if unknown:
        return ConfigError(
            f"Read it with the emoreg that wrote it: {error.title} must have settings that this emoreg knows, but it has "
            f"{', '.join(unknown)}"
        )
    own = faults[0].get("ctx", {}).get("error")
    if isinstance(own, ConfigError):
        return own
    return ConfigError(f"Restore what was written: {_path(faults[0])} is {faults[0]['input']!r}: {faults[0]['msg']}")


def _path(fault: Any) -> str:
    return ".".join(map(str, fault["loc"]))
