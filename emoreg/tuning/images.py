"""The image sets of a study: prepared once before its trials, identified by content, offered to other machines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from emoreg.config import Choice, ImageSetConfig, StudyConfig
from emoreg.config.arms import tuned_controls
from emoreg.config.registry import CONTROLS
from emoreg.config.resolved import CUTS, Fingerprints, Source, resolve_trial, source_of
from emoreg.data import ImageSet, LoadImages, load, parts
from emoreg.data.duplicates import Copies, count_task_copies, count_test_copies, count_validation_copies
from emoreg.data.fetch import offer
from emoreg.data.prepare import Prepared
from emoreg.errors import ConfigError, ImageSetError
from emoreg.formatting import counted
from emoreg.results.planning import ImageCount
from emoreg.results.written import ImageAccount
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join, node_cache
from emoreg.training.stages import check_images, cut_to, load_stimuli


def image_storage(storage: str) -> Path:
    """The folder of this machine whose ``imagesets`` hold what is prepared for a storage: its own, or ``node_cache``."""
    return Files(storage).folder or node_cache()


def image_loader(storage: str) -> LoadImages:
    """What gives a trial its image sets, prepared in a storage or for it."""
    return partial(load, storage=image_storage(storage))


def _opening_once(storage: str) -> LoadImages:
    """``image_loader`` for one look at many trials: a set is opened for the first that has it, however it is cut."""
    load_images = image_loader(storage)

    @functools.cache
    def load_whole(uncut: ImageSetConfig, image_size: int) -> ImageSet:
        return load_images(uncut, image_size=image_size)

    def load_once(config: ImageSetConfig, *, image_size: int) -> ImageSet:
        return load_whole(_cut_as(ImageSetConfig(), config), image_size)

    return load_once


def _unheard(message: str) -> None:
    """Nobody is told."""


def prepare_image_sets(config: StudyConfig, notify: Callable[[str], None] = _unheard) -> Fingerprints:
    """Decode every image set that a trial may load, before any trial, and return their fingerprints.

    ``notify`` is told of what is not in a set although it lies there.

    Raises:
        UserError: for a set that cannot be read, or not used as the study asks.
    """
    prints, load_images = {}, _opening_once(config.storage)
    for role, found, image_set in _loaded(config, load_images):
        prints[source_of(found, config.trial.image_size)] = image_set.fingerprint
        if image_set.left_out:
            notify(f"{role} {found.name}: {', '.join(image_set.left_out)}")
    for control in _controls(config):
        check_images(resolve_trial(dataclasses.replace(config.trial, control=control)), load_images)
    return prints


def _controls(config: StudyConfig) -> tuple[str, ...]:
    """The controls that trials of the study may have."""
    confirmed = (trial.control for trial in config.confirmed)
    return tuple(dict.fromkeys((config.trial.control, *config.controls, *tuned_controls(config), *confirmed)))


def account_images(config: StudyConfig, notify: Callable[[str], None] = _unheard) -> list[ImageAccount]:
    """How the image sets of a study are cut, and what is on both sides of a cut; new sets are prepared.

    ``notify`` is told of stimuli, or what a control has in their place, that are all but the same as test images of the task.

    Raises:
        UserError: for a set that cannot be read.
    """
    trial, load_images = config.trial, _opening_once(config.storage)
    folder, sets = image_storage(config.storage) / "imagesets" / "duplicates", [*_loaded(config, load_images)]
    if config.confirmed:  # which are cut otherwise than the search: as the first of them says
        sets = [(role, _cut_as(getattr(config.confirmed[0], role), found), image_set) for role, found, image_set in sets]
    tasks = [(found, image_set) for role, found, image_set in sets if role == "task"]
    accounts: list[ImageAccount] = []
    for role, found, image_set in sets:
        shared = [Copies(0, 0)]
        for task, task_set in tasks if role != "task" else ():
            asked = dataclasses.replace(trial, task=task)
            with naming(role):
                image_set = load_stimuli(asked, load_images, found, image_size=trial.image_size)
            shared.append(count_task_copies(image_set, task_set, folder))
        worst = max(shared, key=lambda copies: (copies.exact, copies.near or 0))
        if role == "relabelled":  # the stimuli's own images, cut as they are
            of_stimuli = next(account for account in accounts if account.role == "stimuli")
            own = dataclasses.replace(of_stimuli, role=role, name=found.name, num_outputs=image_set.num_outputs)
            accounts.append(own)
            continue
        if role not in ("task", "stimuli"):  # in the place of the stimuli as many are trained on
            found = cut_to(max(account.num_train for account in accounts if account.role == "stimuli"), image_set, found)
        train, validation = parts(image_set, found)
        accounts.append(
            ImageAccount(
                role=role,
                name=found.name,
                num_train=len(train),
                num_validation=len(validation),
                num_test=len(image_set.test),
                num_groups=image_set.train.num_groups,
                test_copies=count_test_copies(image_set, folder),
                validation_copies=count_validation_copies(image_set, found, folder),
                task_copies=None if role == "task" else worst,
                num_outputs=image_set.num_outputs,
            )
        )
        if worst.near:
            copies = f"{counted(worst.near, 'test image')} of the task"
            notify(f"{role} {found.name}: {copies} nearly among its training images: see the report's table of images")
    return accounts


def _cut_as(other: ImageSetConfig, image_set: ImageSetConfig) -> ImageSetConfig:
    return dataclasses.replace(image_set, **{name: getattr(other, name) for name in CUTS})


def image_sets(config: StudyConfig) -> Iterator[tuple[str, ImageSetConfig]]:
    """The image sets that a trial of the study may load, searched ones included, with their roles."""
    for role in dict.fromkeys(("task", "stimuli", *(CONTROLS[name].images for name in _controls(config)))):
        image_set: ImageSetConfig | None = getattr(config.trial, role)
        if image_set is None:
            continue
        searched = config.search_space.get(f"{role}.name")
        names = [str(name) for name in searched.values] if isinstance(searched, Choice) else [image_set.name]
        for name in names:
            yield role, dataclasses.replace(image_set, name=name)


def _loaded(config: StudyConfig, load_images: LoadImages) -> Iterator[tuple[str, ImageSetConfig, ImageSet]]:
    """The image sets that a trial of the study may load, with their roles; new sets are prepared."""
    for role, found in image_sets(config):
        with naming(role):
            image_set = load_images(found, image_size=config.trial.image_size)
        yield role, found, image_set


def image_set_bytes(config: StudyConfig) -> int:
    """Bytes of the prepared image sets that a trial of the study may load."""
    sets = {
        source_of(found, config.trial.image_size): image_set
        for _, found, image_set in _loaded(config, _opening_once(config.storage))
    }
    return sum(split.images.nbytes for image_set in sets.values() for split in (image_set.train, image_set.test))


def test_splits(config: StudyConfig) -> tuple[str, ...]:
    """What ledgers know the test splits by that a confirmation of the study may open; new sets are prepared.

    Raises:
        UserError: for a set that cannot be read.
    """
    load_images, size = image_loader(config.storage), config.trial.image_size
    tasks = [found for role, found in image_sets(config) if role == "task"]  # no other set is opened for it
    return tuple(dict.fromkeys(load_images(task, image_size=size).test_split for task in tasks))


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


def count_images(config: StudyConfig) -> ImageCount:
    """What counts the images in an epoch of a set that a trial of the study trains on; new sets are prepared.

    Raises:
        UserError: when called, for a set that cannot be read.
    """
    trial, load_images = config.trial, image_loader(config.storage)

    @functools.cache
    def load_whole(role: str, uncut: ImageSetConfig) -> ImageSet:
        load_unseen = load_images if role == "task" else partial(load_stimuli, trial, load_images)
        return load_unseen(uncut, image_size=trial.image_size)

    @functools.cache
    def count(role: str, image_set: ImageSetConfig) -> int:
        return len(parts(load_whole(role, _cut_as(ImageSetConfig(), image_set)), image_set)[0])

    return count
