"""Registries: named things that a user may add from a study file, and that the package adds in the same way.

An entry that does not come with the package (its module is not emoreg's) travels to the workers of a study by value, and the
fingerprint of its code is part of the study's identity.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from emoreg.errors import ConfigError

if TYPE_CHECKING:
    from emoreg.config.controls import Control

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries of one kind by name, in the order in which they were added."""

    def __init__(self, kind: str) -> None:
        """Begin empty; ``kind`` is what messages call an entry: "control"."""
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._origins: dict[str, Any] = {}

    def add(self, name: str, entry: T, *, origin: Any = None) -> T:
        """Add an entry; one of the same name is replaced, as a notebook's cell that is run again does.

        ``origin`` is the function or class that a user wrote, if the entry wraps it.
        """
        self._entries[name] = entry
        self._origins[name] = entry if origin is None else origin
        return entry

    def origin(self, name: str) -> Any:
        """The function or class that an entry was made of."""
        return self._origins[name]

    def user_names(self) -> tuple[str, ...]:
        """The names of the entries that do not come with the package."""
        return tuple(name for name, origin in self._origins.items() if origin.__module__.partition(".")[0] != "emoreg")

    def require(self, name: str, *, of: str) -> T:
        """The entry called ``name``; the message says that the setting ``of`` names it.

        Raises:
            ConfigError: if there is none, with the nearest names.
        """
        if name not in self._entries:
            decorator = f"@emoreg.{self.kind.replace(' ', '_')}({name!r})"
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.4) or [*self._entries] or ["none"]
            raise ConfigError(
                f"Register the {self.kind} {name!r} in the study file ({decorator}) or name another: {of} must be a registered "
                f"{self.kind}, but it is {name!r}; the nearest are {', '.join(near)}"
            )
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


CONTROLS: Registry[Control] = Registry("control")
"""What a trial can be compared with, in the order of tables: see ``config.controls``."""
IMAGE_SETS: Registry[Any] = Registry("image set")
"""Readers of image sets: see ``data``."""
BACKBONES: Registry[Any] = Registry("backbone")
"""Encoders beside timm's: see ``training.backbones``."""
PROBES: Registry[Any] = Registry("probe")
"""What looks at a network after chosen epochs: see ``training``."""
METRICS: Registry[Any] = Registry("metric")
"""What is measured on validation besides accuracy and loss: see ``training``."""
LOGGERS: Registry[Any] = Registry("logger")
"""What follows a study from its driver: see ``tracking.loggers``."""


def registries() -> tuple[Registry[Any], ...]:
    """Every registry of the package."""
    return (CONTROLS, IMAGE_SETS, BACKBONES, PROBES, METRICS, LOGGERS)
