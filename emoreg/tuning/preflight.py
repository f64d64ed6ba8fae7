"""What is checked before anything is paid for. Starts no Ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

import emoreg.training.metrics
import emoreg.training.probes  # noqa: F401 - they register our own, of which a driver needs nothing else
from emoreg.config import Choice, ImageSetConfig, StudyConfig, TrialConfig
from emoreg.config.registry import METRICS, PROBES
from emoreg.config.resolved import image_sets, resolve_trial
from emoreg.data import check
from emoreg.errors import ConfigError
from emoreg.formatting import counted
from emoreg.results.tables import Records
from emoreg.storage.files import Files, expand
from emoreg.storage.permissions import check_writable, user_name
from emoreg.storage.working_copy import join
from emoreg.tracking.loggers import check_loggers
from emoreg.training.backbones import check_backbone
from emoreg.training.compilation import missing_compiler, no_compiler
from emoreg.tuning.images import naming
from emoreg.tuning.reconcile import check_warm_start


def study_files(config: StudyConfig) -> Files:
    """``<storage>/<study>``."""
    return Files(join(config.storage, config.name))


def store_uri(config: StudyConfig) -> str:
    """Where the study's experiences are kept, named alike in every process."""
    return absolute(config.experience.uri or join(config.storage, "experience"))


def absolute(place: str) -> str:
    """A folder or URI, named alike in every process."""
    return place if "://" in place else str(expand(place).resolve())


def named_study(config: StudyConfig, name: str) -> Files:
    """The folder of another study: of this name in the same storage, or the folder or URI that ``name`` is."""
    return Files(name if os.sep in name else join(config.storage, name))


def check_study(config: StudyConfig, *, address: str | None = None) -> None:
    """Refuse a study that could not run: unknown backbones, image sets that are not there, unusable storage, missing GPUs.

    Args:
        address: of the Ray cluster that it will run on, whose GPUs are not known before it is joined; None for this machine.

    Raises:
        UserError: naming the rule, the value and the way out.
    """
    check_home(address)
    for backbone in config.backbones():
        check_trial(dataclasses.replace(config.trial, backbone=backbone))
    check_widths(config)
    for path, distribution in config.search_space.items():
        if path in ("stimuli.name", "task.name", "neutral.name", "relabelled.name") and isinstance(distribution, Choice):
            owner: ImageSetConfig = getattr(config.trial, path.partition(".")[0])
            with naming(path.partition(".")[0]):
                for name in distribution.values:
                    check(dataclasses.replace(owner, name=str(name)))
    check_loggers(config)
    Files(config.storage).check()
    if config.experience.uri is not None:
        Files(config.experience.uri).check()
    _check_writable(study_files(config), "", "records", "events", "trials", "optuna.journal")
    _check_writable(Files(store_uri(config)), "", ".locks")
    _check_writable(Files(config.storage), "imagesets")
    check_warm_start(config, partial(named_study, config))
    if address is None and (config.trial.compile == "on" or "compile" in config.search_space):
        missing = missing_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if missing is not None:
            raise no_compiler(missing)
    gpus = max(config.trial_resources(backbone).gpus or 0.0 for backbone in config.backbones())
    if gpus and address is None and not torch.cuda.is_available():
        raise ConfigError(
            f"Set resources.gpus_per_trial to 0 for CPU, leave it out to take what there is, or see `emoreg doctor`: it asks "
            f"for {gpus:g} GPUs, but torch {torch.__version__} sees none here"
        )


def check_home(address: str | None) -> None:
    """Refuse a process without a home: Ray looks for one, and a Ray that is started here keeps its token there.

    Args:
        address: of the Ray cluster that is joined; None where one is started.

    Raises:
        ConfigError: naming HOME.
    """
    home = Path(os.path.expanduser("~"))  # as it is where there is none
    has_token = (home / ".ray" / "auth_token").exists() or bool(os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
    if not home.is_absolute() or (address is None and not has_token and not os.access(home, os.W_OK)):
        raise ConfigError(
            "Set HOME to a folder that can be written: Ray keeps its token there, but that of "
            f"{user_name(os.geteuid())} is {str(home)!r}"
        )


def check_trial(config: TrialConfig) -> None:
    """Refuse a trial whose backbone, image sets, metrics or probes cannot be had."""
    for name in config.metrics:
        METRICS.require(name, of="trial.metrics")
    for name in config.probes:
        PROBES.require(name, of="trial.probes")
    width = resolve_trial(config).config.width
    check_backbone(config.backbone, image_size=config.image_size, weights=config.weights, width=width)
    for role, image_set in image_sets(config).items():
        with naming(role):
            check(image_set)


def check_widths(config: StudyConfig) -> None:
    """Refuse a study whose controls give a backbone a width that it cannot have."""
    for backbone, width in dict.fromkeys(resolve_trial(trial).config.encoder for trial in config.control_trials()):
        if width != config.trial.width:
            check_backbone(backbone, image_size=config.trial.image_size, weights=None, width=width)


def _check_writable(files: Files, *names: str) -> None:
    """Refuse what another user of the storage has made for himself alone."""
    if files.folder is not None:
        for name in names:
            check_writable(files.folder / name)


def lost_epochs(records: Records) -> list[str]:
    """What is to be said of trials that have ended and whose epochs are not in the records any more."""
    lost = [row for row in records.trials.values() if row.regulation_epochs and not records.epochs_of(row.identity)]
    if not lost:
        return []
    return [
        f"records/epochs.parquet lacks {counted(len(lost), 'trial')} that ended: their numbers stand, their curves are lost"
    ]


def adopt_controls(controls: Iterable[str], records: Records) -> None:
    """Make controls of the study what `emoreg trial` ran before the study asked for it: it is not run again.

    Args:
        controls: identities.
    """
    wanted = {*controls}
    for record in list(records.trials.values()):
        if record.role == "trial" and record.identity in wanted:
            records.add_trial(dataclasses.replace(record, role="control"))
