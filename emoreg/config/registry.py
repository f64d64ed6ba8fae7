"""Registries: named things that a user may add from a study file, and that the package adds in the same way.

An entry that does not come with the package (its module is not emoreg's) travels to the workers of a study by value, and the
fingerprint of its code is part of the study's identity.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from emoreg.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries of one kind by name, in the order in which they were added."""

    def __init__(self, kind: str) -> None:
        """Begin empty.

        Args:
            kind: what messages call an entry: "control".
        """
        self.kind = kind
        self._entries: dict[str, T] = {}
        _ALL.append(self)

    def add(self, name: str, entry: T) -> T:
        """Add an entry; one of the same name is replaced, as a notebook's cell that is run again does."""
        self._entries[name] = entry
        return entry

    def require(self, name: str, *, of: str) -> T:
        """The entry called ``name``.

        Args:
            name: to look up.
            of: the setting that names it, for the message.

        Raises:
            ConfigError: if there is none, with the nearest names.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.4) or [*self._entries]
            raise ConfigError(
                f"Register the {self.kind} {name!r} in the study file (@emoreg.{self.kind.replace(' ', '_')}({name!r})) or name "
                f"another: {of} must be a registered {self.kind}; the nearest are {', '.join(near)}"
            )
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_ALL: list[Registry[Any]] = []


def registries() -> tuple[Registry[Any], ...]:
    """Every registry that has been made."""
    return tuple(_ALL)


IMAGE_SETS: Registry[Any] = Registry("image set")
"""Readers of image sets (``emoreg.data.reader.Reader``) by the names that ``ImageSetConfig.name`` may have."""
