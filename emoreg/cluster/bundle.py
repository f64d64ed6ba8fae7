"""The code that travels to a cluster with a study: the checkout that emoreg runs from, and the study's own modules."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import emoreg
from emoreg.config import SECRETS, StudyConfig, leaves
from emoreg.errors import ConfigError
from emoreg.provenance import COMMIT_FILE, git, is_checkout, own_commit
from emoreg.storage.files import expand
from emoreg.study_file import names_file, own_modules

_MIB = 2**20
_MOST_BYTES = 500 * _MIB  # Ray's limit of a package
_OUTSIDE = "submitted"
_LITERAL = 8  # a shorter password may stand in code for something else

NO_SECRETS = (
    "Take it out, and let the nodes of the cluster have it: an instance's role, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, where Ray is started; PGPASSWORD or ~/.pgpass on the head; --notify's URL in the study file"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What travels.

    Attributes:
        files: by their names in the bundle.
        study: how the study is named where the bundle is the working directory.
        root: the folder that emoreg was taken from.
        commit: of that folder, with ``+`` if it was changed; None outside git.
    """

    files: dict[str, Path]
    study: str
    root: Path
    commit: str | None

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files.values())
        commit = "" if self.commit is None else f" at commit {self.commit[:9]}{'+' * self.commit.endswith('+')}"
        return f"{len(self.files)} files, {size / _MIB:.1f} MiB, of {self.root}{commit}"

    def write(self, path: Path, secrets: Iterable[str] = ()) -> None:
        """Write the bundle as a zip file, the same for the same files.

        Raises:
            ConfigError: for a file that holds one of the ``secrets``.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in sorted(self.files.items()):
                content = file.read_bytes()
                if any(secret.encode() in content for secret in secrets):
                    raise ConfigError(
                        f"{NO_SECRETS}: code that travels to a cluster must hold no password or key, but {str(file)!r} does"
                    )
                _add(archive, name, content)
            if self.commit is not None:
                _add(archive, COMMIT_FILE, f"{self.commit}\n".encode())


def collect(reference: str, config: StudyConfig) -> Bundle:
    """What a study, which is loaded, needs of this machine's code. Hidden files, caches and results stay here.

    Of a git checkout: what git tracks, and what is new and not ignored. Of anything else: emoreg and its studies. Of the
    user's own modules: those from the study's own folder that it has imported.

    Raises:
        ConfigError: for files that are more than Ray takes.
    """
    root = Path(emoreg.__file__).resolve().parents[1]
    results = {root / "runs", expand(config.storage).resolve()}
    files = {name: root / name for name in _listed(root, results) if (root / name).is_file()}
    path, is_file = expand(reference).resolve(), names_file(reference)
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) if is_file else module.__name__ == reference:
            files |= {_name(own): Path(str(own.__file__)).resolve() for own in own_modules(module)[is_file:]}
    study = reference
    if is_file:
        study = path.relative_to(root).as_posix() if path.is_relative_to(root) else f"{_OUTSIDE}/{path.name}"
        files[study] = path
    _check_size(files)
    return Bundle(files=files, study=study, root=root, commit=own_commit())


def secrets_of(config: StudyConfig) -> set[str]:
    """The strings that betray a password or key of the study's settings in a file: the URL's piece, or the bare literal."""
    values = [value for path, value in leaves(config) if path != "search_space"]
    texts = [text for value in values for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str)]
    found = set()
    for match in (match for text in texts for pattern in SECRETS for match in pattern.finditer(text)):
        found |= {match[0]} | ({f'"{match[1]}"', f"'{match[1]}'"} if len(match[1]) >= _LITERAL else set())
    return found


def _listed(root: Path, results: set[Path]) -> Iterator[str]:
    """Names of the files below ``root`` that may travel."""
    if is_checkout(root):
        names = git(root, "ls-files", "-z").split("\0")
        new = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
        names += [name for name in new if not results & {*(root / name).parents}]
    else:
        names = [str(path.relative_to(root)) for package in ("emoreg", "studies") for path in (root / package).rglob("*")]
    return (name for name in names if not any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts))


def _name(module: ModuleType) -> str:
    folder = module.__name__.replace(".", "/")
    return f"{folder}/__init__.py" if Path(str(module.__file__)).name == "__init__.py" else f"{folder}.py"


def _check_size(files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > _MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ConfigError(
            "Move data out of the checkout, or name it in .gitignore: code that travels to a cluster may take "
            f"{_MOST_BYTES // _MIB} MiB, but it takes {total / _MIB:.0f}, most of it in "
            f"{', '.join(f'{name} ({sizes[name] / _MIB:.0f} MiB)' for name in largest)}"
        )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # without the file's time
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
