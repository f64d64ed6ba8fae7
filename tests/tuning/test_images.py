from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emoreg.config import Choice, ImageSetConfig, StudyConfig, replace_paths
from emoreg.config.resolved import Fingerprints
from emoreg.errors import ImageSetError
from emoreg.tuning.images import available_controls, image_sets, prepare_image_sets
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
    with pytest.raises(ImageSetError, match=r"Choose a larger set than 'digits', .* training images, 64, but it has 14"):
        prepare_image_sets(with_neutral)


def test_prepared_sets_are_known_by_their_fingerprints(study: StudyConfig) -> None:
    prints = prepare_image_sets(study)
    (fingerprint,) = {prints.of(TINY.task, 16), prints.of(TINY.stimuli, 16)}  # both are the digits
    assert fingerprint is not None
    assert len(fingerprint) == 64
    assert prepare_image_sets(study) == prints
    assert Fingerprints.from_rows(prints.rows()) == prints


def test_a_study_says_what_it_leaves_out_of_its_images(study: StudyConfig, one_class: Path) -> None:
    for number, split in enumerate(("train", "test", "dev")):
        (one_class / split / "sorrow").mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 0, number)).save(one_class / split / "sorrow" / "1.png")
    told: list[str] = []
    stimuli = {"stimuli__name": "folder", "stimuli__path": str(one_class), "stimuli__num_images": None}
    prepare_image_sets(changed(study, **stimuli), told.append)
    assert told == ["stimuli folder: left out: dev (1)"]


def test_which_image_sets_a_study_may_load() -> None:
    neutral = dataclasses.replace(TINY, neutral=ImageSetConfig(name="openmoji-objects"))
    space = {"stimuli.name": Choice(("digits", "openmoji")), **tiny_study().search_space}

    def sets(**changes: Any) -> list[tuple[str, str]]:
        return [(role, found.name) for role, found in image_sets(tiny_study(trial=neutral, search_space=space, **changes))]

    assert sets() == [("task", "digits"), ("stimuli", "digits"), ("stimuli", "openmoji")]
    assert sets(controls=("neutral",))[3:] == [("neutral", "openmoji-objects")]
    assert available_controls(TINY, ("plain", "neutral")) == ("plain",)
    assert available_controls(neutral, ("plain", "neutral")) == ("plain", "neutral")
