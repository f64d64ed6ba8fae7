"""Paths into a configuration: names, and places in tuples, with dots between, as in ``"regulation.balance"``.

Search spaces and command lines name settings by their paths.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from emoreg.config.validation import expectations
from emoreg.errors import ConfigError

Value = str | int | float | bool
"""A value that a search may choose."""
Config = TypeVar("Config")


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every path into a configuration with its value, in the order of the fields.

    A path goes on through configurations and tuples of them (``"stages.0.epochs"``); an empty tuple is a value.
    """
    for name, value in parts(config):
        path = f"{prefix}{name}"
        if _is_branch(value):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def changes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every path whose value is not the default of its field, with the value.

    For a tuple of configurations its length is one, and for a configuration that need not be there, its class.
    """
    for name, default in _defaults(config.__class__):
        value, path = getattr(config, name), f"{prefix}{name}"
        if not _is_branch(value):
            if value != default:
                yield path, value
        elif isinstance(value, tuple):
            yield path, len(value)
            for index, part in enumerate(value):
                yield from changes(part, f"{path}.{index}.")
        else:
            if default is None:
                yield path, type(value).__name__
            yield from changes(value, f"{path}.")


@functools.cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a configuration with their defaults, which are made once: they are frozen."""
    return tuple(
        (item.name, item.default if item.default_factory is dataclasses.MISSING else item.default_factory())
        for item in dataclasses.fields(kind)
    )


def _is_branch(value: object) -> bool:
    """Whether paths go on through a value: a configuration, or a tuple of them."""
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_branch, value))
    return dataclasses.is_dataclass(value)


def parts(config: Any) -> Iterable[tuple[str, Any]]:
    """The fields of a configuration, or the places of a tuple, by name, with their values as they are."""
    if isinstance(config, tuple):
        return ((str(index), item) for index, item in enumerate(config))
    return ((item.name, getattr(config, item.name)) for item in dataclasses.fields(config))


def read_path(config: object, path: str) -> Any:
    """The value at ``path``.

    Raises:
        ConfigError: for a path that is not there, with the nearest ones that are.
    """
    found: Any = config
    for name in path.split("."):
        inside = dict(parts(found)) if _is_branch(found) else {}
        if name not in inside:
            break
        found = inside[name]
    else:
        if not _is_branch(found):
            return found
    known = dict(leaves(config))
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.4)
    names = f"such as {' or '.join(near)}" if near else "that `emoreg show` lists"
    raise ConfigError(f"Name a setting {names}: a path must lead to a setting of the trial, but {path!r} does not")


def replace_paths(config: Config, values: Mapping[str, Value]) -> Config:
    """``config`` with the values at the paths replaced and validated, all at once.

    Raises:
        ConfigError: for an unknown path, a value of the wrong type, or one that breaks a rule.
    """
    for path, value in values.items():
        read_path(config, path)
        owner: Any = config
        *parents, name = path.split(".")
        for parent in parents:
            owner = dict(parts(owner))[parent]
        expectations(type(owner))[name].check(path, value)
    changed: Config = _replace(config, values)
    return changed


def _replace(config: Any, values: Mapping[str, Value]) -> Any:
    if "" in values:
        return values[""]
    inner: dict[str, dict[str, Value]] = {}
    for path, value in values.items():
        head, _, tail = path.partition(".")
        inner.setdefault(head, {})[tail] = value
    changed = {name: _replace(part, inner[name]) for name, part in parts(config) if name in inner}
    if isinstance(config, tuple):
        return tuple(changed.get(name, part) for name, part in parts(config))
    return dataclasses.replace(config, **changed)
