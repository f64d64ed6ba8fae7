"""Trees of image files as people have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import ImageSet, load
from emoreg.errors import ImageSetError, StorageError

Fill = Callable[..., None]
CLASSES = ("happy", "sad")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faces"


@pytest.fixture
def fill(noise: Callable[..., Image.Image], root: Path) -> Fill:
    """Puts pictures that differ into folders below the root."""
    made = 0

    def fill(*folders: str, num: int = 5) -> None:
        nonlocal made
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for _ in range(num):
                made += 1
                noise(made).save(root / folder / f"{made}.png")

    return fill


def read(root: Path, group: str | None = None) -> ImageSet:
    return load(ImageSetConfig(name="folder", path=str(root), group=group), image_size=8, storage=root.parent)


def sizes(image_set: ImageSet) -> tuple[int, int]:
    return len(image_set.train), len(image_set.test)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAINING", "TESTING"),
        ("train", "val"),
        ("Training Set", "Dev Set"),
        ("FER2013Train", "FER2013Test"),
    ],
)
def test_splits_are_known_by_the_hubs_words(root: Path, fill: Fill, train: str, test: str) -> None:
    fill(*(f"{train}/{name}" for name in CLASSES), num=4)
    fill(*(f"{test}/{name}" for name in CLASSES), num=1)
    found = read(root)
    assert found.class_names == CLASSES
    assert sizes(found) == (8, 2)
    assert found.origins == {"train": train, "test": test}


def test_a_wrapper_is_gone_into_and_its_rubbish_counted(root: Path, fill: Fill) -> None:
    fill("archive/images/train/happy", "archive/images/train/sad", num=4)
    fill("archive/images/test/happy", "archive/images/test/sad", num=1)
    fill("__MACOSX/archive/happy")
    found = read(root)
    assert sizes(found) == (8, 2)
    assert found.origins == {"train": "archive/images/train", "test": "archive/images/test"}
    assert found.summary == {"passed over: folder of a system": 1}


def test_a_split_that_holds_itself_is_gone_into(root: Path, fill: Fill) -> None:
    fill("seg_train/seg_train/happy", "seg_train/seg_train/sad", num=4)
    fill("seg_test/seg_test/happy", "seg_test/seg_test/sad", num=1)
    fill("seg_pred")
    found = read(root)
    assert sizes(found) == (8, 2)
    assert found.summary == {"passed over: folder beside the splits (seg_pred)": 1}


def test_classes_may_have_the_names_of_splits(root: Path, fill: Fill) -> None:
    fill("train", "car", "plane")
    assert read(root).class_names == ("car", "plane", "train")


def test_valid_and_invalid_are_classes(root: Path, fill: Fill) -> None:
    fill("valid", "invalid")
    assert read(root).class_names == ("invalid", "valid")


def test_splits_without_class_folders_are_not_learned_as_classes(root: Path, fill: Fill) -> None:
    fill("Train", "Test")
    with pytest.raises(ImageSetError, match=r"Give train/<class>/\* .*\['Test', 'Train'\] .* are named as splits"):
        read(root)


def test_a_test_split_among_the_classes_is_refused(root: Path, fill: Fill) -> None:
    fill("happy", "sad", "test/happy", "test/sad")
    with pytest.raises(ImageSetError, match=r"\['test'\] .* are named as splits, but there is no training split"):
        read(root)


def test_a_level_that_may_be_splits_of_another_name_is_refused_by_name(root: Path, fill: Fill) -> None:
    fill(*(f"{fold}/{name}" for fold in ("fold1", "fold2") for name in CLASSES))
    with pytest.raises(ImageSetError, match=r"Name the splits train and test.*\['fold1', 'fold2'\].*\['happy', 'sad'\]"):
        read(root)


def test_classes_by_person_are_taken_below_train(root: Path, fill: Fill) -> None:
    fill(*(f"{name}/{person}" for name in CLASSES for person in ("anna", "ben")))
    with pytest.raises(ImageSetError, match="if these are classes, move them into a folder train"):
        read(root)
    for name in CLASSES:
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    faces = read(root)
    assert faces.class_names == CLASSES
    [(note, count)] = faces.summary.items()
    assert note.startswith("folder inside a class folder, read with it (people's? then set the group to class/person")
    assert count == 4


def test_people_who_did_not_make_every_face_are_no_classes(root: Path, fill: Fill) -> None:
    fill("ann/happy", "ann/sad", "bob/happy", "bob/calm", "cyd/sad", "cyd/happy")
    with pytest.raises(ImageSetError, match=r"class/person .* most of \['ann', 'bob', 'cyd'\].*\['happy', 'sad'\]"):
        read(root)


def test_two_folders_of_one_split_are_refused(root: Path, fill: Fill) -> None:
    fill(*(f"{split}/{name}" for split in ("train", "Training") for name in CLASSES))
    with pytest.raises(ImageSetError, match=r"Keep one folder for each split: \['Training', 'train'\] .* all say train"):
        read(root)


def test_thumbnails_of_a_network_drive_are_no_pictures(root: Path, fill: Fill) -> None:
    for name in CLASSES:
        fill(name)
        fill(f"{name}/@eaDir/1.png", f"{name}/.@__thumb")
    found = read(root)
    assert sizes(found) == (8, 2)
    assert found.summary == {"passed over: folder of a system": 4}


def test_rubbish_beside_the_classes_is_no_class(root: Path, fill: Fill) -> None:
    fill(*CLASSES)
    for name in ("__MACOSX/happy", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir"):
        (root / name).mkdir(parents=True)
    (root / "__MACOSX/happy/._1.png").touch()
    (root / "Thumbs.db").touch()
    (root / "happy" / "desktop.ini").touch()
    found = read(root)
    assert found.class_names == CLASSES
    assert found.summary == {"passed over: folder of a system": 5, "passed over: not an image file": 1}


def test_pictures_in_no_class_folder_are_counted(root: Path, fill: Fill) -> None:
    fill(*CLASSES)
    fill("", num=3)
    assert read(root).summary == {"passed over: image in no class folder": 3}


def test_a_test_split_without_labels_is_said_and_the_validation_split_taken(root: Path, fill: Fill) -> None:
    fill("train/happy", "train/sad", num=4)
    fill("val/happy", "val/sad", num=1)
    fill("test", num=3)
    found = read(root)
    assert sizes(found) == (8, 2)
    assert found.origins["test"] == "val"
    assert found.summary == {"left out: no labels in test": 3}


def test_a_validation_split_beside_a_labelled_test_split_is_left_out_and_counted(root: Path, fill: Fill) -> None:
    fill("train/happy", "train/sad", num=4)
    fill("val/happy", "val/sad", num=3)
    fill("test/happy", "test/sad", num=1)
    found = read(root)
    assert sizes(found) == (8, 2)
    assert found.summary == {"left out: val": 6}


def test_what_is_passed_over_is_no_part_of_the_stamp(root: Path, fill: Fill) -> None:
    fill(*CLASSES)
    read(root)
    fill("happy/@eaDir")
    read(root)
    assert len(list((root.parent / "imagesets").glob("*.arrow"))) == 1


@pytest.mark.parametrize("inner", [("train", "test"), ("Training", "val")])
def test_splits_below_the_classes_are_refused(root: Path, fill: Fill, inner: tuple[str, str]) -> None:
    fill(*(f"{name}/{split}" for name in CLASSES for split in inner))
    with pytest.raises(ImageSetError, match=r"Put the splits above the classes .*\['happy', 'sad'\] .* hold splits"):
        read(root)


def test_pictures_of_a_kind_that_cannot_be_read_are_not_passed_over(root: Path, fill: Fill) -> None:
    fill(*CLASSES)
    for number in range(2):
        (root / "sad" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageSetError, match=r"may be unreadable, but 2 are, among them sad/IMG_\d.HEIC \(not an image\)"):
        read(root)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(root: Path, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(*CLASSES, "sad/ben")
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("ben"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"See to space and permissions: .*Permission denied: .*sad/ben"):
        read(root)


def people(*names: str) -> list[str]:
    return [f"{name}/{label}" for name in names for label in CLASSES]


@pytest.mark.parametrize("levels", ["person/class", "class/person"])
def test_images_of_a_person_are_never_on_both_sides(root: Path, fill: Fill, levels: str) -> None:
    paths = people(*(f"p{number}" for number in range(10)))
    fill(*(paths if levels == "person/class" else ("/".join(reversed(path.split("/"))) for path in paths)), num=3)
    faces = read(root, levels)
    assert faces.class_names == CLASSES
    assert (sizes(faces), faces.train.num_groups, faces.test.num_groups) == ((48, 12), 8, 2)
    assert faces.summary == {}
    assert faces.train.groups is not None
    assert faces.test.groups is not None
    assert not {*faces.train.groups} & {*faces.test.groups}
    assert np.bincount(faces.test.targets).tolist() == [6, 6]
    if levels == "class/person":
        with pytest.raises(ImageSetError, match="set the group to class/person or person/class"):
            read(root)


def test_people_on_both_sides_of_an_official_split_are_counted(root: Path, fill: Fill) -> None:
    fill(*(f"set/Training/{path}" for path in people("ann", "bob")), num=4)
    fill(*(f"set/Testing/{path}" for path in people("bob", "cyd")), num=2)
    faces = read(root, "person/class")
    assert (sizes(faces), faces.train.num_groups, faces.test.num_groups) == ((16, 8), 2, 2)
    assert faces.summary == {"groups that are in train and in test": 1, "test images of a group that is also in train": 4}


def test_images_without_a_person_stand_by_themselves(root: Path, fill: Fill) -> None:
    fill("train/happy/ann", "train/sad/ann", "train/happy", "test/happy/cyd/1", "test/sad/cyd")
    faces = read(root, "class/person")
    assert (faces.train.num_groups, faces.test.num_groups) == (6, 1)
    assert faces.summary == {"images without a group, each by itself": 5}
    with pytest.raises(ImageSetError, match=r"Leave out the group of 'folder', or correct it: .* found no 'class/a/b/c'"):
        read(root, "class/a/b/c")


@pytest.mark.parametrize("levels", ["person", "class", "class/", "class//person", "class/class"])
def test_levels_that_name_no_class_or_no_group_are_refused(root: Path, fill: Fill, levels: str) -> None:
    fill(*CLASSES)
    with pytest.raises(ImageSetError, match="Write the group as the levels of folders below the splits, such as class/person"):
        read(root, levels)
