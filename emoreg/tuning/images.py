"""The image sets of a study: prepared once before its trials, identified by content, offered to other machines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from emoreg.config import Choice, ImageSetConfig, StudyConfig, TrialConfig
from emoreg.config.registry import CONTROLS
from emoreg.config.resolved import Fingerprints, Source, resolve_trial, source_of
from emoreg.data import load, parts
from emoreg.data.fetch import offer
from emoreg.data.prepare import Prepared
from emoreg.errors import ConfigError, ImageSetError
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join, node_cache
from emoreg.training.stages import check_images


def image_storage(storage: str) -> Path:
    """The folder of this machine whose ``imagesets`` hold what is prepared for a storage: its own, or ``node_cache``."""
    return Files(storage).folder or node_cache()


def _unheard(message: str) -> None:
    """Nobody is told."""


def prepare_image_sets(config: StudyConfig, notify: Callable[[str], None] = _unheard) -> Fingerprints:
    """Decode every image set that a trial may load, before any trial, and return their fingerprints.

    ``notify`` is told of what is not in a set although it lies there.

    Raises:
        UserError: for a set that cannot be read, or not used as the study asks.
    """
    load_images = partial(load, storage=image_storage(config.storage))
    size = config.trial.image_size
    prints = {}
    for role, image_set in image_sets(config):
        with naming(role):
            prepared = load_images(image_set, image_size=size)
        prints[source_of(image_set, size)] = prepared.fingerprint
        if prepared.left_out:
            notify(f"{role} {image_set.name}: {', '.join(prepared.left_out)}")
    for control in dict.fromkeys((config.trial.control, *config.controls, *(trial.control for trial in config.confirmed))):
        check_images(resolve_trial(dataclasses.replace(config.trial, control=control)), load_images)
    return Fingerprints(prints)


def image_sets(config: StudyConfig) -> Iterator[tuple[str, ImageSetConfig]]:
    """The image sets that a trial of the study may load, searched ones included, with their roles."""
    controls = {config.trial.control, *config.controls, *(confirmed.control for confirmed in config.confirmed)}
    for role in dict.fromkeys(("task", "stimuli", *(CONTROLS[name].images for name in controls))):
        image_set: ImageSetConfig | None = getattr(config.trial, role)
        if image_set is None:
            continue
        searched = config.search_space.get(f"{role}.name")
        names = [str(name) for name in searched.values] if isinstance(searched, Choice) else [image_set.name]
        for name in names:
            yield role, dataclasses.replace(image_set, name=name)


def image_set_bytes(config: StudyConfig) -> int:
    """Bytes of the prepared image sets that a trial of the study may load."""
    load_images, size = partial(load, storage=image_storage(config.storage)), config.trial.image_size
    sets = {source_of(image_set, size): load_images(image_set, image_size=size) for _, image_set in image_sets(config)}
    return sum(split.images.nbytes for image_set in sets.values() for split in (image_set.train, image_set.test))


def test_splits(config: StudyConfig) -> tuple[str, ...]:
    """What ledgers know the test splits by that a confirmation of the study may open; new sets are prepared.

    Raises:
        UserError: for a set that cannot be read.
    """
    load_images, size = partial(load, storage=image_storage(config.storage)), config.trial.image_size
    tasks = [image_set for role, image_set in image_sets(config) if role == "task"]
    return tuple(dict.fromkeys(load_images(task, image_size=size).test_split for task in tasks))


def available_controls(trial: TrialConfig, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the controls whose image sets a trial names."""
    return tuple(name for name in names if getattr(trial, CONTROLS[name].images) is not None)


@contextmanager
def naming(role: str) -> Iterator[None]:
    """Let an error of an image set say which of the trial's it is: its path on the command line."""
    try:
        yield
    except (ConfigError, ImageSetError) as error:
        raise type(error)(f"trial.{role}: {error}") from error


def offer_image_sets(config: StudyConfig) -> dict[Source, Prepared]:
    """Put every image set that a trial may load where all machines can fetch it, prepared.

    Raises:
        UserError: for a set that cannot be read.
    """
    offered = {}
    files = Files(join(config.storage, "imagesets"))
    size = config.trial.image_size
    for role, image_set in image_sets(config):
        with naming(role):
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
