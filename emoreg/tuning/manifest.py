"""``study.json``: what a study is, on which images, with which code. A study goes on only as what it began."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import emoreg
from emoreg.config import StudyConfig, to_json, without_secrets
from emoreg.config.resolved import Fingerprints
from emoreg.config.trial import Precision
from emoreg.errors import ConfigError
from emoreg.provenance import own_commit
from emoreg.results.records import Provenance
from emoreg.results.written import Compilation, ImageAccount, read_written
from emoreg.storage.files import Files, replacing
from emoreg.storage.sealed import seal
from emoreg.training.experience import TRAINER_VERSION, weights_digest
from emoreg.tuning.user_code import code_fingerprints

_PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "pyarrow", "tensorboard", "numpy")
_FIXED = ("trial", "search_space", "objectives")
"""What may not change while a study keeps its name."""
_REGULATION_VERSION = 2  # raise it when the numbers of regulation change: studies begun before are then not gone on with


def write_manifest(
    config: StudyConfig,
    folder: Path,
    fingerprints: Fingerprints,
    precisions: Mapping[str, Precision] | None = None,
    images: Sequence[ImageAccount] = (),
    compilations: Mapping[str, Compilation] | None = None,
) -> None:
    """Write ``study.json``.

    ``precisions`` is what precision "auto" means on a CPU, by backbone, and ``compilations`` what compile "auto" means;
    ``images`` says how its image sets are cut.

    Raises:
        ConfigError: if the study on disk is another one, with the differences.
    """
    refuse_changes(config, folder, fingerprints)
    content = _compared(config, fingerprints) | {
        "images": [to_json(account) for account in images],
        "precisions": dict(precisions or {}),
        "compilations": {name: to_json(found) for name, found in (compilations or {}).items()},
        "versions": versions(),
        "git_commit": own_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "platform": platform.platform(),
    }
    with replacing(folder / "study.json") as stream:
        stream.write(seal(content))


def refuse_changes(config: StudyConfig, folder: Path, fingerprints: Fingerprints) -> None:
    """Refuse a study that is not the one in a folder any more, if there is one.

    Versions of packages are not compared; what changes emoreg's own numbers counts as ``trainer``.

    Raises:
        ConfigError: with the differences.
        StorageError: where the one in the folder cannot be read.
    """
    if not (folder / "study.json").exists():
        return
    before, after = _flat_fixed(to_json(read_written(Files(str(folder))))), _flat_fixed(_compared(config, fingerprints))
    changed = [
        f"  {name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in sorted(before.keys() | after.keys())
        if (name in before, before.get(name)) != (name in after, after.get(name))  # 1 and 1.0 are one setting
        and not (name.startswith("fingerprints.") and (name not in before or name not in after))  # sets may join later
    ]
    if changed:
        raise ConfigError(
            "Give the changed study another name, and let it learn from this one where the search space still fits (--name NEW "
            f"--warm-start-from {config.name}), or restore the old values: study {config.name!r} cannot be resumed, since its "
            "configuration, images, code or trainer have changed since it was begun:\n" + "\n".join(changed)
        )


def provenance(config: StudyConfig, command: str | None) -> Provenance:
    """Where the numbers of a run that begins now come from; passwords in the command are hidden."""
    return Provenance(
        study=config.name,
        storage=config.without_password().storage,
        command=None if command is None else without_secrets(command),
        versions=versions(),
        git_commit=own_commit(),
        host=f"{platform.node()} ({platform.platform()})",
    )


def versions() -> dict[str, str]:
    """Versions of emoreg, Python and the packages that make the numbers."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"emoreg": emoreg.__version__, "python": platform.python_version()} | packages


def _compared(config: StudyConfig, fingerprints: Fingerprints) -> dict[str, Any]:
    trial = config.trial
    weights = [["weights", trial.weights, None, trial.image_size, weights_digest(trial.weights)]] if trial.weights else []
    return {
        "config": to_json(config.without_password()),
        "fingerprints": [[*source, fingerprint] for source, fingerprint in fingerprints.items()] + weights,
        "code": code_fingerprints(config),
        "trainer": {"pretraining": TRAINER_VERSION, "regulation": _REGULATION_VERSION},
    }


def _flat_fixed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change, of the content of ``study.json``, by path."""
    fixed = {name: content["config"][name] for name in _FIXED}
    prints = {" ".join(str(part) for part in row[:-1] if part is not None): row[-1] for row in content["fingerprints"]}
    return _flat(fixed | {"fingerprints": prints, "code": content["code"], "trainer": content["trainer"]})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): value}


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
