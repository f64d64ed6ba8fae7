"""From what a user names to a study: a module, a Python file, or the name, folder or URI of one that was run."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from emoreg.config import STORAGE
from emoreg.errors import ConfigError, UserError
from emoreg.provenance import shipped_studies
from emoreg.storage.files import Files, expand
from emoreg.storage.working_copy import join
from emoreg.study import Study, imported_file, load_study


def names_file(reference: str) -> bool:
    """Whether a study is named by its file, and not by its module."""
    return reference.endswith(".py") or "/" in reference


def read_study_file(reference: str) -> Study:
    """The study that ``reference`` names: a module (``studies.quickstart``) or a path to a Python file.

    Raises:
        ConfigError: where it is missing, fails, runs a study, or has no ``study``: a ``Study``, or a function that gives one.
    """
    path, is_file = expand(reference), names_file(reference)
    if is_file and not path.is_file():
        raise ConfigError(f"Correct the path: a study is a module or a Python file, but there is no file {reference!r}")
    if is_file and path.suffix != ".py":
        raise ConfigError(f"Name the file that defines the study: it must end in .py, but this is {reference!r}")
    with _importing(reference, path.resolve().parent if is_file else Path.cwd()):
        module = _load(path.resolve()) if is_file else importlib.import_module(reference)
        study = vars(module).get("study")
        if callable(study):
            study = study()
    if not isinstance(study, Study):
        raise ConfigError(
            f"Define `study` in {reference!r}, an emoreg.Study or a function that returns one, but it is a "
            f"{type(study).__name__}: see studies/quickstart.py"
        )
    return study


@contextmanager
def _importing(reference: str, folder: Path) -> Iterator[None]:
    """Import a study within: modules beside it are found as `python FILE` would find them, and its errors name it.

    Afterwards modules beside it come last, so that a file of a library's name there is not taken for the library.
    """
    token = imported_file.set(reference)
    sys.path.insert(0, str(folder))
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and (reference == error.name or reference.startswith(f"{error.name}.")):
            raise ConfigError(
                f"Name a study that is there: a module or a Python file (by its path, with .py), but there is no module "
                f"{reference!r}; emoreg ships {', '.join(shipped_studies())}"
            ) from error
        raise _failure(reference, error) from error
    except SyntaxError as error:
        raise ConfigError(
            f"Correct the study {reference!r}, which is not valid Python: {error.msg} at {error.filename}:{error.lineno}"
        ) from error
    except UserError as error:
        raise ConfigError(f"Correct the study {reference!r}: {error}") from error
    except Exception as error:
        raise _failure(reference, error) from error
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        imported_file.reset(token)


def _failure(reference: str, error: Exception) -> ConfigError:
    """The error with the place in the user's file, which is the last frame."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigError(
        f"Correct the study {reference!r}, which fails: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    )


def _load(path: Path) -> ModuleType:
    """The module of a file, under a name that no other file's has."""
    stem, digest = re.sub(r"\W", "_", path.stem), hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"emoreg_study_{stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
    spec.loader.exec_module(module)
    return module


def own_modules(module: ModuleType) -> list[ModuleType]:
    """A study file's module first, then the modules that were imported from its own folder: what travels to workers with it.

    emoreg is not among them, nor what is installed below that folder.
    """
    file = module.__file__
    if file is None:
        return [module]
    folder = Path(file).resolve().parents[module.__name__.count(".")]
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    elsewhere = (*installed, folder / ".venv", Path(__file__).resolve().parent)

    def is_own(other: object) -> bool:
        place = getattr(other, "__file__", None)
        if not isinstance(other, ModuleType) or place is None or other.__name__ == "__main__":
            return False
        if not Path(place).is_absolute():  # torch.ops, for one
            return False
        path = Path(place).resolve()
        return path.is_relative_to(folder) and not any(path.is_relative_to(root) for root in elsewhere)

    return [module, *(other for other in list(sys.modules.values()) if other is not module and is_own(other))]


def find_study(reference: str, storage: str | None) -> str:
    """The folder or URI of a study that was run.

    Args:
        reference: its folder or URI, its name in ``storage``, or the module or file that defines it.
        storage: where names are looked for, and what a file defines; None for ``STORAGE``, and the storage that the file names.

    Raises:
        ConfigError: where nothing is called so, or it was never run.
    """
    if "://" in reference or (expand(reference) / "study.json").exists():
        return reference
    named_in = STORAGE if storage is None else storage
    place = join(named_in, reference)
    if re.fullmatch(r"[\w.-]+", reference) and Files(place).exists("study.json"):
        return place
    try:
        study = read_study_file(reference)
    except ConfigError:
        if expand(reference).is_file():  # its own error says more
            raise
        raise ConfigError(
            f"Give --storage, or the study's folder: a study is its name in {named_in!r}, its folder or URI, or the module or "
            f"file that defines it, but there is no {reference!r}"
        ) from None
    place = study.place if storage is None else join(storage, study.name)
    if not Files(place).exists("study.json"):
        raise ConfigError(f"Run the study first (`emoreg run {reference}`): there is none in {place!r} yet")
    return place


def open_study(reference: str, storage: str | None) -> Study:
    """The study that was run, as ``find_study`` finds it, or the one that a module or file defines.

    Raises:
        ConfigError: where there is neither.
    """
    try:
        return load_study(find_study(reference, storage))
    except ConfigError as error:
        try:
            study = read_study_file(reference)
        except ConfigError:
            raise error from None
    return study if storage is None else Study.from_config(dataclasses.replace(study.config, storage=storage))
