"""From what a user names to a study: to the ``StudyConfig`` of a module or file, or to the folder of one that has run."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from emoreg.config import STORAGE, StudyConfig
from emoreg.config.search_space import SearchSpace
from emoreg.errors import ConfigError, UserError
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join


@dataclass(frozen=True, slots=True)
class Launch:
    """A study as it was asked for.

    Attributes:
        reference: the module or file that names it.
        config: with what the command line has set.
        space: the whole search space, before the command line set anything.
        overridden: paths into the trial that the command line may have set.
        address: of a Ray cluster; None for this machine.
        command: what was typed.
    """

    reference: str
    config: StudyConfig
    space: SearchSpace
    overridden: Set[str]
    address: str | None
    command: str


def read_study_file(reference: str) -> StudyConfig:
    """The study that ``reference`` names: a module (``studies.quickstart``) or a path to a Python file.

    Raises:
        ConfigError: where it is not there, cannot be imported, or has no ``study()`` that returns a ``StudyConfig``.
    """
    module = _import(reference)
    function = vars(module).get("study")
    if not callable(function):
        raise ConfigError(
            f"a study file must define study() -> StudyConfig, but {reference!r} does not: see studies/quickstart.py"
        )
    try:
        study = function()
    except UserError as error:
        raise ConfigError(f"study() of {reference!r} makes a study that breaks a rule: {error}") from error
    except Exception as error:
        raise ConfigError(f"study() of {reference!r} fails: {_where(error)}") from error
    if not isinstance(study, StudyConfig):
        raise ConfigError(
            f"study() must return a StudyConfig, but that of {reference!r} returns a {type(study).__name__}: return one"
        )
    return study


def find_study(reference: str, storage: str | None) -> str:
    """The folder or URI of a study that was run.

    Args:
        reference: its folder or URI, its name in ``storage``, or the module or file that defines it.
        storage: where names are looked for, and what a file defines; None for ``STORAGE``, and the storage that the file names.

    Raises:
        ConfigError: where nothing is called so, or it was never run.
    """
    if "://" in reference or (Path(reference).expanduser() / "study.json").exists():
        return reference
    named_in = STORAGE if storage is None else storage
    place = join(named_in, reference)
    if re.fullmatch(r"[\w.-]+", reference) and Files(place).exists("study.json"):
        return place
    try:
        config = read_study_file(reference)
    except ConfigError:
        if Path(reference).expanduser().is_file():  # its own error says more
            raise
        raise ConfigError(
            f"a study is its name in {named_in!r}, its folder or URI, or the module or file that defines it, but there is no "
            f"{reference!r}: give --storage, or its folder"
        ) from None
    place = join(config.storage if storage is None else storage, config.name)
    if not Files(place).exists("study.json"):
        raise ConfigError(f"a study must have been run, but there is none in {place!r}: `emoreg run {reference}` runs it")
    return place


def _import(reference: str) -> ModuleType:
    path = Path(reference).expanduser()
    is_file = reference.endswith(".py") or "/" in reference
    if is_file and not path.is_file():
        raise ConfigError(f"a study is a module or a Python file, but there is no file {reference!r}: correct the path")
    if is_file and path.suffix != ".py":
        raise ConfigError(f"a study's file must end in .py, but this is {reference!r}: name the file that defines the study")
    # Modules of the user's own are found as `python FILE` and `python -m MODULE` would find them.
    beside = str(path.resolve().parent if is_file else Path.cwd())
    if beside not in sys.path:
        sys.path.insert(0, beside)
    try:
        if not is_file:
            return importlib.import_module(reference)
        spec = importlib.util.spec_from_file_location(f"emoreg_study_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not is_file and (reference == error.name or reference.startswith(f"{error.name}.")):
            raise ConfigError(
                f"a study is a module or a Python file, but there is no module {reference!r}: emoreg ships "
                f"{', '.join(shipped_studies())}; a file is named by its path, with .py"
            ) from error
        raise ConfigError(f"the study {reference!r} cannot be imported: {_where(error)}") from error
    except SyntaxError as error:
        raise ConfigError(
            f"the study {reference!r} is not valid Python: {error.msg} at {error.filename}:{error.lineno}"
        ) from error
    except UserError as error:
        raise ConfigError(f"the study {reference!r} breaks a rule: {error}") from error
    except Exception as error:
        raise ConfigError(f"the study {reference!r} cannot be imported: {_where(error)}") from error
    return module


def shipped_studies() -> list[str]:
    """The studies that come with emoreg."""
    import studies

    return [f"studies.{module.name}" for module in pkgutil.iter_modules(studies.__path__)]


def _where(error: Exception) -> str:
    """The error with the place in the user's file, which is the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({frames[-1].filename}:{frames[-1].lineno})"
