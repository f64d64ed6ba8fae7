"""What ``auto`` of precision and of compile means in a study: decided once for each backbone, and kept in ``study.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

import torch

from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.trial import Precision
from emoreg.results.planning import ImageCount
from emoreg.results.records import TrialRecord
from emoreg.results.written import Compilation, written_of
from emoreg.storage.files import Files
from emoreg.training.precision import auto_precision
from emoreg.tuning.estimate import draw_trials, threads_of
from emoreg.tuning.machine import machine_share, num_fit

_AS_BEGUN = Compilation(compiled=False, reason="trials of the study have finished without")
_ON_A_GPU = Compilation(compiled=False, reason="on a GPU nothing was measured: compile='on' compiles there")


def study_precisions(config: StudyConfig, files: Files, records: Iterable[TrialRecord]) -> dict[str, Precision]:
    """What ``auto`` means on a CPU, by backbone: as the study began or, of a confirmation, as its search; else by measurement.

    Empty where no trial asks, and where trials have a GPU.

    Args:
        files: of its folder.
        records: of its trials.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    if not _may_be_auto(config, "precision"):
        return {}
    decided = {  # an emoreg that did not record it computed in float32
        row.backbone: row.precision or "float32" for row in records if row.device == "CPU" and _has_finished(row, "precision")
    }
    for written in written_of(config, files):
        decided |= written.precisions
    if torch.cuda.is_available():
        return decided
    measured: dict[str, Precision] = {}
    for backbone in _undecided(config, decided):
        trial = dataclasses.replace(config.trial, backbone=backbone, precision="auto", deterministic=False)
        with threads_of(trial, config):
            measured[backbone] = auto_precision(trial, torch.device("cpu"))
    return {**measured, **decided}


def study_compilations(
    config: StudyConfig,
    files: Files,
    records: Iterable[TrialRecord],
    precisions: Mapping[str, Precision],
    count_images: ImageCount,
    notify: Callable[[str], None],
) -> dict[str, Compilation]:
    """What ``auto`` means, by backbone: as the study began or, of a confirmation, as its search; else by measurement.

    Empty where no trial asks.

    Args:
        files: of its folder.
        records: of its trials.
        precisions: what precision ``auto`` means in the study.
        count_images: counts the images of an epoch of a set.
        notify: told of a measurement that takes a while.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    if not _may_be_auto(config, "compile"):
        return {}
    decided = {row.backbone: _AS_BEGUN for row in records if _has_finished(row, "compile")}
    decided |= written_compilations(config, files)
    missing = _undecided(config, decided)
    if torch.cuda.is_available():
        return {**dict.fromkeys(missing, _ON_A_GPU), **decided}
    return {**_measure_compilations(config, missing, precisions, count_images, notify), **decided}


def written_compilations(config: StudyConfig, files: Files) -> dict[str, Compilation]:
    """What a study has decided or, before a confirmation has, its search: by backbone.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    decided: dict[str, Compilation] = {}
    for written in written_of(config, files):
        decided |= written.compilations
    return decided


def encoder_images(config: TrialConfig, count_images: ImageCount) -> int:
    """Images that pass through an encoder while a resolved trial trains, its pre-training included."""
    regulation, images = config.regulation, 0
    if regulation.needs_emotional and config.pretraining.epochs:
        images += config.pretraining.total_epochs * count_images("stimuli", config.stimuli)
    encoders = regulation.needs_plain + (regulation.needs_emotional and not regulation.is_emotion_frozen)
    return images + regulation.epochs * encoders * count_images("task", config.task)


def _measure_compilations(
    config: StudyConfig,
    backbones: list[str],
    precisions: Mapping[str, Precision],
    count_images: ImageCount,
    notify: Callable[[str], None],
) -> dict[str, Compilation]:
    if not backbones:
        return {}
    from emoreg.training.compile_choice import auto_compile

    drawn = [trial.config for trial in draw_trials(config)] if config.num_trials else []
    found: dict[str, Compilation] = {}
    for backbone in backbones:
        base = dataclasses.replace(config.trial, backbone=backbone, deterministic=False)
        precision: Precision = "float32" if base.precision == "auto" else base.precision
        settled = dataclasses.replace(base, precision=precisions.get(backbone, precision), compile="auto")
        own = [trial for trial in drawn if trial.backbone == backbone] or [base]
        num_trials = config.seeds_per_trial * config.num_trials * len(own) / max(1, len(drawn)) if drawn else 0
        beside = sum(1 for trial in config.control_trials() if trial.backbone == backbone) + len(config.confirmed)
        images = (num_trials + beside) * fmean(encoder_images(trial, count_images) for trial in own)
        asked = dataclasses.replace(config.trial_resources(backbone), gpus=None, accelerator_type=None)
        with threads_of(settled, config):
            found[backbone] = auto_compile(settled, images, max(1, num_fit(asked, machine_share().resources)), notify)
    return found


def _may_be_auto(config: StudyConfig, setting: str) -> bool:
    """Whether trials of the study may leave a setting open. Where a trial is deterministic, it has nothing to decide."""
    trial, space = config.trial, config.search_space
    return (getattr(trial, setting) == "auto" or setting in space) and (not trial.deterministic or "deterministic" in space)


def _has_finished(record: TrialRecord, setting: str) -> bool:
    """Whether a trial that had left a setting open has finished."""
    trial = json.loads(record.config)
    return record.status == "finished" and trial.get(setting, "auto") == "auto" and not trial["deterministic"]


def _undecided(config: StudyConfig, decided: Mapping[str, object]) -> list[str]:
    return [backbone for backbone in config.backbones() if backbone not in decided]
