"""What a user has registered from a study file or a notebook, on its way to the workers of a study.

Entries are pickled by value, and so are the modules that lie beside those which define them: a worker on another machine needs
neither the study's file nor its folder. The entries that come with emoreg are in every worker already. With them goes where
they were collected: a relative path, of images or weights, means the same place in every worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import cloudpickle

import emoreg
from emoreg.config import StudyConfig
from emoreg.config.code import source_fingerprint
from emoreg.config.registry import LOGGERS, registries
from emoreg.errors import ConfigError
from emoreg.tuning.images import image_sets


@dataclass(frozen=True, slots=True)
class UserCode:
    """Entries of the registries, pickled by value, and the working directory of the process that collected them."""

    pickled: bytes
    directory: str

    @classmethod
    def collect(cls) -> UserCode:
        """What is registered now.

        Raises:
            ConfigError: for an entry that cannot be pickled.
        """
        entries = [
            (registry.kind, name, registry[name], registry.origin(name))
            for registry in registries()
            if registry is not LOGGERS  # which workers do not need
            for name in registry.user_names()
        ]
        with ExitStack() as after:
            for module in {module for *_, origin in entries for module in _modules_beside(origin)}:
                cloudpickle.register_pickle_by_value(module)
                after.callback(cloudpickle.unregister_pickle_by_value, module)
            try:
                return cls(cloudpickle.dumps(entries), os.getcwd())
            except Exception as error:
                names = ", ".join(f"{kind} {name!r}" for kind, name, *_ in entries)
                raise ConfigError(
                    f"Make what cannot be pickled (open files, locks, connections) inside the functions that need it: the code "
                    f"of {names} must travel to the workers, but it does not ({type(error).__name__}: {error})"
                ) from error

    def restore(self) -> None:
        """Add the entries to the registries of this process, which works where they were collected, if its machine has that."""
        if os.path.isdir(self.directory):
            os.chdir(self.directory)  # Tune moves workers into folders of its own
        by_kind = {registry.kind: registry for registry in registries()}
        for kind, name, entry, origin in cloudpickle.loads(self.pickled):
            by_kind[kind].add(name, entry, origin=origin)


def code_fingerprints(config: StudyConfig) -> dict[str, str]:
    """Fingerprints of the user's code that decides numbers of the study, by kind and name."""
    used = {
        "backbone": {*config.backbones()},
        "control": {config.trial.control, *config.controls, *(trial.control for trial in config.confirmed)},
        "image set": {image_set.name for _, image_set in image_sets(config)},
        "metric": {*config.trial.metrics},
    }
    return {
        f"{registry.kind} {name}": source_fingerprint(registry.origin(name))
        for registry in registries()
        for name in registry.user_names()
        if name in used.get(registry.kind, ())
    }


def _modules_beside(origin: Any) -> Iterator[ModuleType]:
    """The module that defines something, and those that were imported from its folder; none of ``__main__``'s own."""
    module = sys.modules.get(origin.__module__)
    path = getattr(module, "__file__", None)
    if module is None or path is None:  # a notebook's, which is pickled by value in any case
        return
    if origin.__module__ != "__main__":
        yield module
    folder, package = Path(path).resolve().parent, Path(emoreg.__file__).resolve().parent
    for other in [*sys.modules.values()]:
        where = getattr(other, "__file__", None)
        if where is None or other.__name__ == "__main__" or "site-packages" in where:
            continue
        place = Path(where).resolve()
        if place.is_relative_to(folder) and not place.is_relative_to(package):
            yield other
