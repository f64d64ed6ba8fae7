"""The same picture in two splits: exactly, nearly, mirrored, and not at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from emoreg.config import ImageSetConfig
from emoreg.data import Split, duplicates, load
from emoreg.data.duplicates import find_duplicates, looks_of, without_copies
from tests.helpers.trials import noise_set

SIDE = 48


@cache
def scenes(*photographs: str) -> np.ndarray:
    """Pieces of real photographs, each of another place. They are the same for all tests: nobody may write to them."""
    found = []
    for name in photographs or ("china.jpg", "flower.jpg"):
        photograph = load_sample_image(name)
        for top in range(0, 420 - 80, 80):
            for left in range(0, 640, 80):
                piece = photograph[top : top + 80, left : left + 80]
                found.append(np.asarray(Image.fromarray(piece).resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    pieces = np.stack([image for image in found if image.std() > 20])
    pieces.setflags(write=False)
    return pieces


def split(images: np.ndarray) -> Split:
    return Split(images=images, targets=np.zeros(len(images), dtype=np.int64))


def as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return Image.open(stream)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": as_jpeg,
    "resized": lambda image: image.resize((32, 32)).resize((SIDE, SIDE)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "of less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "mirrored and re-encoded": lambda image: as_jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def test_equal_and_mirrored_pixels_are_exact() -> None:
    images = scenes()[:20]
    found = find_duplicates(split(images[:12]), split(np.concatenate([images[5:7], images[2:3, :, ::-1], images[12:]])))
    assert found.exact.tolist() == [[2, 2], [5, 0], [6, 1]]
    assert found.copies == (3, 0)


@pytest.mark.parametrize("change", CHANGES)
def test_what_people_do_to_pictures_leaves_them_near(change: str) -> None:
    images = scenes()
    changed = np.stack([np.asarray(CHANGES[change](Image.fromarray(image)).convert("RGB")) for image in images])
    found = find_duplicates(split(images), split(changed))
    assert found.copies.exact == 0
    assert found.near is not None
    assert (found.near[:, 0] == found.near[:, 1]).all(), "none is taken for another"
    assert len(found.near) >= 0.75 * len(images)


def test_other_pictures_are_not_near() -> None:
    assert find_duplicates(split(scenes("china.jpg")), split(scenes("flower.jpg"))).copies == (0, 0)


def test_flat_pictures_are_told_apart_only_exactly() -> None:
    shades = np.arange(0, 250, 5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), dtype=np.uint8)
    faint = shades + np.random.default_rng(0).integers(0, 3, shades.shape, dtype=np.uint8)
    assert find_duplicates(split(shades), split(shades[:10])).copies == (10, 0)
    assert find_duplicates(split(shades), split(faint)).copies == (0, 0)


def test_kept_looks_are_those_of_the_pictures_and_go_with_them(tmp_path: Path) -> None:
    digits = load(ImageSetConfig(name="digits"), image_size=16, storage=tmp_path)
    for some in (digits.train, digits.test, digits.train.take(np.array([5, 900]))):
        assert np.array_equal(some.looks, looks_of(some.images))


def test_near_ones_are_not_looked_for_among_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 99)
    images = split(scenes()[:10])
    assert find_duplicates(images, images).copies == (10, None)


def test_copies_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, counted = scenes()[:30], []

    def count(first: Split, second: Split) -> duplicates.Duplicates:
        counted.append(len(second))
        return find_duplicates(first, second)

    monkeypatch.setattr(duplicates, "find_duplicates", count)
    image_set, cut = (
        noise_set(split(images[:20]), test=split(images[15:])),
        ImageSetConfig(name="noise", validation_fraction=0.2),
    )

    def all_copies() -> list[tuple[int, int | None]]:
        task = replace(image_set, fingerprint="another")
        return [
            duplicates.count_test_copies(image_set, tmp_path),
            duplicates.count_validation_copies(image_set, cut, tmp_path),
            duplicates.count_task_copies(image_set, task, tmp_path),
        ]

    assert all_copies() == all_copies() == [(5, 0), (0, 0), (5, 0)]
    assert counted == [15, 4, 15]
    damaged = next(tmp_path.glob("*.json"))
    damaged.write_bytes(damaged.read_bytes().replace(b'"near": 0', b'"near": 1'))
    assert all_copies() == [(5, 0), (0, 0), (5, 0)]
    assert len(counted) == 4


def test_a_set_without_its_copies_is_another_set() -> None:
    images = scenes()[:12]
    image_set = noise_set(split(images))
    found = find_duplicates(image_set.train, split(images[3:5]), exact_only=True)
    assert found.near is None
    spared = without_copies(image_set, found)
    assert np.array_equal(spared.train.images, np.delete(images, [3, 4], axis=0))
    assert spared.fingerprint != image_set.fingerprint
    assert without_copies(image_set, find_duplicates(image_set.train, split(scenes()[20:22]), exact_only=True)) is image_set
