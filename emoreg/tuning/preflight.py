"""What is checked before anything is paid for, and what identifies a study on disk. Starts no Ray."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import emoreg
from emoreg.config import Choice, ImageSetConfig, StudyConfig, TrialConfig, without_secrets
from emoreg.config.resolved import Source, source_of
from emoreg.data import check, load, parts
from emoreg.data.fetch import offer
from emoreg.data.prepare import Prepared
from emoreg.errors import ConfigError, ImageSetError
from emoreg.provenance import own_commit
from emoreg.results.records import Provenance, Records
from emoreg.storage.files import Files, replacing
from emoreg.storage.locks import Claims
from emoreg.storage.working_copy import PATIENCE_SECONDS, WorkingCopy, join, node_cache, only_driver
from emoreg.training.backbones import check_backbone
from emoreg.training.experience import TRAINER_VERSION
from emoreg.training.trial import check_images
from emoreg.tuning.postgres import DatabaseLeases, is_postgresql, make_ready
from emoreg.tuning.reconcile import check_warm_start

_PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "pyarrow", "tensorboard", "numpy")
_FIXED = ("trial", "search_space", "objectives")
"""What may not change while a study keeps its name."""
_REGULATION_VERSION = 1  # raise it when the numbers of regulation change: studies begun before are then not gone on with


def image_storage(storage: str) -> Path:
    """The folder of this machine whose ``imagesets`` hold what is prepared for a storage: its own, or ``node_cache``."""
    return Files(storage).folder or node_cache()


def study_files(config: StudyConfig) -> Files:
    """``<storage>/<study>``, asked patiently: it serves a study that runs."""
    return Files(join(config.storage, config.name), patience_seconds=PATIENCE_SECONDS)


def storage_uri(config: StudyConfig) -> str:
    """The study's storage, named alike in every process."""
    return _absolute(config.storage)


def store_uri(config: StudyConfig) -> str:
    """Where the study's experiences are kept, named alike in every process."""
    return _absolute(config.experience.uri or join(config.storage, "experience"))


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def named_study(config: StudyConfig, name: str) -> Files:
    """The folder of another study: of this name in the same storage, or the folder or URI that ``name`` is."""
    return Files(name if os.sep in name else join(config.storage, name))


def check_study(config: StudyConfig, *, address: str | None = None) -> None:
    """Refuse a study that could not run: unknown backbones, image sets that are not there, unusable storage, missing GPUs.

    Args:
        config: the study.
        address: of the Ray cluster that it will run on, whose GPUs are not known before it is joined; None for this machine.

    Raises:
        UserError: naming the rule, the value and the way out.
    """
    for backbone in config.backbones():
        check_trial(dataclasses.replace(config.trial, backbone=backbone))
    for path, distribution in config.search_space.items():
        if path in ("stimuli.name", "task.name", "neutral.name") and isinstance(distribution, Choice):
            owner: ImageSetConfig = getattr(config.trial, path.partition(".")[0])
            with _naming(path.partition(".")[0]):
                for name in distribution.values:
                    check(dataclasses.replace(owner, name=str(name)))
    check_storage(config.storage)
    if config.experience.uri is not None:
        Files(config.experience.uri).check()
    check_warm_start(config, partial(named_study, config))
    gpus = max(config.trial_resources(backbone).gpus or 0.0 for backbone in config.backbones())
    if gpus and address is None and not torch.cuda.is_available():
        raise ConfigError(
            f"resources.gpus_per_trial asks for {gpus:g} GPUs, but torch {torch.__version__} sees none here: set it to 0 for "
            "CPU, leave it out to take what there is, or see `emoreg doctor`"
        )


def check_trial(config: TrialConfig) -> None:
    """Refuse a trial whose backbone or image sets cannot be had."""
    check_backbone(config.backbone, image_size=config.image_size, weights=config.weights)
    for role, image_set in (("task", config.task), ("stimuli", config.stimuli), ("neutral", config.neutral)):
        if image_set is not None:
            with _naming(role):
                check(image_set)


@contextmanager
def _naming(role: str) -> Iterator[None]:
    """Let an error of an image set say which of the trial's it is: its path on the command line."""
    try:
        yield
    except (ConfigError, ImageSetError) as error:
        raise type(error)(f"trial.{role}: {error}") from error


def check_storage(storage: str) -> None:
    """Refuse a storage that cannot be written, by writing to it."""
    Files(storage).check()


def prepare_image_sets(config: StudyConfig) -> dict[str, str]:
    """Decode the study's image sets once, before any trial, and return their fingerprints by role.

    Raises:
        UserError: for a set that cannot be read, or not used as the study asks.
    """
    trial = config.trial
    load_images = partial(load, storage=image_storage(config.storage))
    prints = {}
    for role, image_set in _image_sets(config).items():
        with _naming(role):
            prints[role] = load_images(image_set, image_size=trial.image_size).fingerprint
    for control in dict.fromkeys(("regulated", *config.controls, *(confirmed.control for confirmed in config.confirmed))):
        check_images(dataclasses.replace(trial, control=control), load_images)
    return prints


def _image_sets(config: StudyConfig) -> dict[str, ImageSetConfig]:
    """The image sets that the study trains on, by role."""
    trial = config.trial
    sets = {"task": trial.task, "stimuli": trial.stimuli}
    controls = {*config.controls, *(confirmed.control for confirmed in config.confirmed)}
    if "neutral" in controls and trial.neutral is not None:
        sets["neutral"] = trial.neutral
    return sets


def offer_image_sets(config: StudyConfig) -> dict[Source, Prepared]:
    """Put every image set that a trial may load where all machines can fetch it, prepared.

    Raises:
        UserError: for a set that cannot be read.
    """
    offered = {}
    files = Files(join(config.storage, "imagesets"), patience_seconds=PATIENCE_SECONDS)
    size = config.trial.image_size
    for role, image_set in _every_image_set(config):
        with _naming(role):
            prepared = offer(image_set, image_size=size, storage=image_storage(config.storage), files=files)
        offered[source_of(image_set, size)] = prepared
    return offered


def count_images(config: StudyConfig) -> Callable[[ImageSetConfig], int]:
    """What counts the images in an epoch of a set that a trial of the study trains on; new sets are prepared.

    Raises:
        UserError: when called, for a set that cannot be read.
    """
    load_images = partial(load, storage=image_storage(config.storage), image_size=config.trial.image_size)

    @functools.cache
    def count(image_set: ImageSetConfig) -> int:
        train, _ = parts(load_images(image_set), image_set)
        return len(train)

    return count


def _every_image_set(config: StudyConfig) -> Iterator[tuple[str, ImageSetConfig]]:
    """The image sets that a trial may load, searched ones included, with their roles."""
    for role, image_set in _image_sets(config).items():
        searched = config.search_space.get(f"{role}.name")
        names = [str(name) for name in searched.values] if isinstance(searched, Choice) else [image_set.name]
        for name in names:
            yield role, dataclasses.replace(image_set, name=name)


def adopt_controls(config: StudyConfig, records: Records) -> None:
    """Make controls of the study what `emoreg trial` ran before the study asked for it: it is not run again."""
    wanted = {trial.identity for trial in config.control_trials()}
    for record in list(records.trials.values()):
        if record.role == "trial" and record.identity in wanted:
            records.add_trial(dataclasses.replace(record, role="control"))


@contextmanager
def driving(config: StudyConfig) -> Iterator[tuple[WorkingCopy, Records, Claims | None]]:
    """Begin to drive a study: its folder, its records and, where its history is in PostgreSQL, what it shares with others.

    Raises:
        StorageError: where another process drives the study, and its history is not in PostgreSQL.
    """
    files = study_files(config)
    if not is_postgresql(config.optuna_storage):
        with only_driver(files) as copy:
            yield copy, Records(copy.folder), None
        return
    assert config.optuna_storage is not None
    make_ready(config.optuna_storage)
    claims = DatabaseLeases(config.optuna_storage, f"study {config.name}")
    with WorkingCopy(files) as copy:

        @contextmanager
        def turn() -> Iterator[None]:
            with claims.turn():
                copy.pull("study.json", "records")
                yield
                copy.push("records")

        with turn():
            records = Records(copy.folder, turn)
        yield copy, records, claims


def write_study_file(config: StudyConfig, folder: Path, fingerprints: dict[str, str]) -> None:
    """Write ``study.json``: what is run, on what, with which versions. A study goes on only as what it began.

    Raises:
        ConfigError: where the study on disk is another one, with the differences.
    """
    refuse_changes(config, folder, fingerprints)
    content = _fixed(config, fingerprints) | {
        "versions": _versions(),
        "git_commit": own_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "platform": platform.platform(),
    }
    with replacing(folder / "study.json") as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")


def refuse_changes(config: StudyConfig, folder: Path, fingerprints: dict[str, str]) -> None:
    """Refuse a study that is not the one in a folder any more, where there is one.

    Not compared are the versions of packages; what changes emoreg's own numbers counts as ``trainer``.

    Raises:
        ConfigError: with the differences.
    """
    path = folder / "study.json"
    if path.exists():
        _refuse_changes(config.name, json.loads(path.read_text()), _fixed(config, fingerprints))


def _fixed(config: StudyConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What is compared, of ``study.json``."""
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(config.without_password()))),
        "fingerprints": fingerprints,
        "trainer": {"pretraining": TRAINER_VERSION, "regulation": _REGULATION_VERSION},
    }


def provenance(command: str | None) -> Provenance:
    """Where the numbers of a run that begins now come from; passwords in the command are hidden."""
    return Provenance(
        command=None if command is None else without_secrets(command),
        versions=_versions(),
        git_commit=own_commit(),
        host=f"{platform.node()} ({platform.platform()})",
    )


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"emoreg": emoreg.__version__, "python": platform.python_version()} | packages


def _refuse_changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    both = old["fingerprints"].keys() & new["fingerprints"].keys()  # the neutral set may join later, with its control
    before, after = (
        _flat(
            {name: content["config"][name] for name in _FIXED}
            | {"fingerprints": {name: content["fingerprints"][name] for name in both}}
            | {"trainer": content.get("trainer", {"pretraining": 1, "regulation": 1})}  # versions before there was the key
        )
        for content in (old, new)
    )
    changed = [
        f"  {name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in sorted(before.keys() | after.keys())
        if (name in before, before.get(name)) != (name in after, after.get(name))  # 1 and 1.0 are one setting
    ]
    if changed:
        raise ConfigError(
            "a study goes on as what it began, but its configuration, its images or its trainer have changed since "
            f"study {name!r} was begun:\n"
            + "\n".join(changed)
            + "\nGive the changed study another name, and let it learn from "
            f"this one where the search space still fits (--name NEW --warm-start-from {name}), or restore the old "
            "values"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): value}


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
