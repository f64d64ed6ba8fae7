from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emoreg.config import Choice, ImageSetConfig, StudyConfig, replace_paths
from emoreg.config.controls import available_controls
from emoreg.config.resolved import resolve_trial, source_of
from emoreg.data import load
from emoreg.errors import ImageSetError
from emoreg.training.stages import pretraining_stage
from emoreg.tuning.images import (
    account_images,
    count_images,
    image_sets,
    image_storage,
    prepare_image_sets,
)
from tests.helpers.studies import tiny_study
from tests.helpers.trials import TINY


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def changed(study: StudyConfig, **paths: Any) -> StudyConfig:
    return dataclasses.replace(study, trial=replace_paths(study.trial, {k.replace("__", "."): v for k, v in paths.items()}))


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / "images" / split / "joy").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / split / "joy" / "1.png")
    return tmp_path / "images"


def test_faults_of_image_sets_are_found(study: StudyConfig, one_class: Path) -> None:
    with pytest.raises(ImageSetError, match=r"two classes or more.*\['joy'\]"):
        prepare_image_sets(changed(study, stimuli__name="folder", stimuli__path=str(one_class)))
    with pytest.raises(ImageSetError, match=r"Choose another num_images.* must lie between 10 .*but it is 99999"):
        prepare_image_sets(changed(study, task__num_images=99999))
    with pytest.raises(ImageSetError, match=r"Choose another num_images.* must lie between 10 .*but it is 99999"):
        prepare_image_sets(changed(study, stimuli__num_images=99999))
    with pytest.raises(ImageSetError, match="a task needs validation images"):
        prepare_image_sets(changed(study, task__validation_fraction=1e-5))


def test_a_neutral_set_must_be_as_large_as_the_stimuli(study: StudyConfig) -> None:
    neutral = ImageSetConfig(name="digits", validation_fraction=0.99)
    with_neutral = dataclasses.replace(
        study, trial=dataclasses.replace(TINY, neutral=neutral), controls=("regulated", "plain", "neutral")
    )
    with pytest.raises(ImageSetError, match=r"Choose a larger set than 'digits', .* training images, 16, but it has 14"):
        prepare_image_sets(with_neutral)


def test_what_stands_in_for_the_stimuli_is_told_with_as_many_images(study: StudyConfig) -> None:
    neutral = ImageSetConfig(name="openmoji-objects", validation_fraction=0.0)
    with_neutral = dataclasses.replace(study, trial=dataclasses.replace(TINY, neutral=neutral), controls=("neutral",))
    prepare_image_sets(with_neutral)
    trained_on = {account.role: account.num_train for account in account_images(with_neutral)}
    assert trained_on["neutral"] == trained_on["stimuli"] == 16


def test_prepared_sets_are_known_by_their_fingerprints(study: StudyConfig) -> None:
    prints = prepare_image_sets(study)
    (fingerprint,) = {prints[source_of(TINY.task, 16)], prints[source_of(TINY.stimuli, 16)]}  # both are the digits
    assert len(fingerprint) == 64
    assert prepare_image_sets(study) == prints


def test_a_set_is_opened_once_for_all_controls(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ImageSetConfig] = []
    monkeypatch.setattr("emoreg.tuning.images.load", lambda found, **where: opened.append(found) or load(found, **where))
    prepare_image_sets(study)
    assert [found.name for found in opened] == ["digits"]


def test_a_study_says_what_it_leaves_out_of_its_images(study: StudyConfig, one_class: Path) -> None:
    for number, split in enumerate(("train", "test", "dev")):
        (one_class / split / "sorrow").mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 0, number)).save(one_class / split / "sorrow" / "1.png")
    told: list[str] = []
    stimuli = {"stimuli__name": "folder", "stimuli__path": str(one_class), "stimuli__num_images": None}
    prepare_image_sets(changed(study, **stimuli), told.append)
    assert told == ["stimuli folder: left out: dev (1)"]


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Stimuli of two classes, two of whose twelve training images, one mirrored, are test images of the digits."""
    digits = load(TINY.task, image_size=16, storage=tmp_path)
    random, root = np.random.default_rng(0), tmp_path / "stimuli"
    pictures = [*random.integers(0, 256, (14, 16, 16, 3), dtype=np.uint8)]
    pictures[0], pictures[5] = digits.test.images[3], digits.test.images[40][:, ::-1]
    for number, picture in enumerate(pictures):
        folder = root / ("train" if number < 12 else "test") / ("glad" if number % 2 else "sad")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    return root


def test_stimuli_among_the_test_images_of_the_task_are_refused_or_left_out(study: StudyConfig, leaking: Path) -> None:
    stimuli = {"stimuli__name": "folder", "stimuli__path": str(leaking), "stimuli__num_images": None}
    with pytest.raises(ImageSetError) as refused:
        prepare_image_sets(changed(study, **stimuli))
    assert str(refused.value) == (
        "Set exclude_test_images=True, which leaves these images out, or choose other ones: pre-training must see no test "
        "image of the task, but 2 of the 12 training images of 'folder' are, as they are or mirrored, test images of 'digits'; "
        "by their places in the splits 2 (40), 6 (3)"
    )
    dropping = changed(study, **stimuli, exclude_test_images=True)
    prepare_image_sets(dropping)
    load_images = partial(load, storage=image_storage(study.storage))
    kept = pretraining_stage(resolve_trial(dropping.trial), load_images, torch.device("cpu"))
    assert (len(kept.train), len(kept.image_set.train)) == (10, 10)
    assert kept.image_set.fingerprint != load_images(dropping.trial.stimuli, image_size=16).fingerprint
    assert count_images(dropping)("stimuli", dropping.trial.stimuli) == 10
    whole = dataclasses.replace(dropping.trial.task, num_images=None, validation_fraction=0.0)
    assert count_images(dropping)("task", whole) == len(load_images(whole, image_size=16).train)
    plain = dataclasses.replace(changed(study, **stimuli).trial, control="plain")
    prepare_image_sets(dataclasses.replace(study, trial=plain, controls=()))  # it sees no stimuli
    told: list[str] = []
    task, found = account_images(dropping, told.append)
    assert (task.role, task.task_copies, found.num_train, found.task_copies) == ("task", None, 10, (0, 0))
    assert told == []


def test_stimuli_like_test_images_of_the_task_are_told_and_taken(study: StudyConfig, leaking: Path) -> None:
    for file in leaking.glob("train/*/*.png"):
        Image.open(file).point([min(255, round(1.05 * value)) for value in range(256)] * 3).save(file)
    stimuli = {"stimuli__name": "folder", "stimuli__path": str(leaking), "stimuli__num_images": None}
    prepare_image_sets(changed(study, **stimuli))
    told: list[str] = []
    _, found = account_images(changed(study, **stimuli), told.append)
    assert found.task_copies == (0, 2)
    assert told == [
        "stimuli folder: 2 test images of the task nearly among its training images: see the report's table of images"
    ]


def test_which_image_sets_a_study_may_load() -> None:
    neutral = dataclasses.replace(TINY, neutral=ImageSetConfig(name="openmoji-objects"))
    space = {"stimuli.name": Choice(("digits", "openmoji")), **tiny_study().search_space}

    def sets(**changes: Any) -> list[tuple[str, str]]:
        return [(role, found.name) for role, found in image_sets(tiny_study(trial=neutral, search_space=space, **changes))]

    assert sets() == [("task", "digits"), ("stimuli", "digits"), ("stimuli", "openmoji")]
    assert sets(controls=("neutral",))[3:] == [("neutral", "openmoji-objects")]
    assert available_controls(tiny_study(), ("plain", "neutral")) == ("plain",)
    assert available_controls(tiny_study(trial=neutral), ("plain", "neutral")) == ("plain", "neutral")
