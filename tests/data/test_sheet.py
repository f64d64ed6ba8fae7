from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import ImageSet, Split, contact_sheet, load


def drawn(image_set: ImageSet, path: Path) -> np.ndarray:
    contact_sheet(image_set, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the picture stands on the sheet, pixel by pixel."""
    height, width = picture.shape[:2]
    ys, xs = np.nonzero((sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in zip(ys, xs, strict=True))


def random_set(num_classes: int, size: int, *, regression: bool = False) -> ImageSet:
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        targets = random.normal(size=(count, num_classes)).astype(np.float32) if regression else np.arange(count) % num_classes
        return Split(images=random.integers(0, 256, (count, size, size, 3), dtype=np.uint8), targets=targets)

    return ImageSet(
        name="random",
        class_names=tuple(f"a class with a name that is much too long {index}" for index in range(num_classes)),
        regression=regression,
        fingerprint="0123456789abcdef" * 4,
        train=split(4 * num_classes),
        test=split(num_classes),
        summary={"refused: truncated (" + ", ".join(f"file {number}" for number in range(40)) + ")": 40},
    )


def test_the_pictures_stand_on_the_sheet_with_each_pixel_visible(tmp_path: Path) -> None:
    image_set = random_set(3, 32)
    sheet = drawn(image_set, tmp_path / "sheet.png")
    for image in image_set.train.images:
        assert contains(sheet, image.repeat(3, 0).repeat(3, 1))
    for image in image_set.test.images:
        assert not contains(sheet, image.repeat(3, 0).repeat(3, 1))


def test_rows_follow_the_classes(tmp_path: Path) -> None:
    heights = [drawn(random_set(count, 32), tmp_path / "sheet.png").shape[0] for count in (3, 4, 6)]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0]) > 2 * 96


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    image_set = random_set(3, 32)
    none = image_set.train.targets == 1
    without = dataclasses.replace(image_set, train=image_set.train.take(np.flatnonzero(~none)))
    sheet = drawn(without, tmp_path / "sheet.png")
    assert sheet.shape[0] == drawn(image_set, tmp_path / "other.png").shape[0]
    assert not contains(sheet, image_set.train.images[none][0].repeat(3, 0).repeat(3, 1))


# Of many classes images are drawn smaller, so that they have another size from which on they are not enlarged.
@pytest.mark.parametrize(("num_classes", "size"), [(2, 8), (2, 48), (2, 64), (2, 128), (100, 8), (100, 128)])
def test_any_size_and_number_of_classes(tmp_path: Path, size: int, num_classes: int) -> None:
    sheet = drawn(random_set(num_classes, size), tmp_path / "sheet.png")
    assert sheet.shape[0] < 10_000
    assert (sheet[:, -7:] == 255).all()  # nothing runs over the margin
    assert (sheet[-7:] == 255).all()


def test_regression_shows_the_extremes(tmp_path: Path) -> None:
    image_set = random_set(2, 32, regression=True)
    sheet = drawn(image_set, tmp_path / "sheet.png")
    for column in range(2):
        for index in (image_set.train.targets[:, column].argmin(), image_set.train.targets[:, column].argmax()):
            assert contains(sheet, image_set.train.images[index].repeat(3, 0).repeat(3, 1))


def test_names_that_the_font_lacks_are_written_plainly(tmp_path: Path, tree: Path) -> None:
    (tree / "calm").rename(tree / "très calme 喜")
    (tree / "wild" / "bröken.png").touch()
    strange = load(ImageSetConfig(name="folder", path=str(tree)), image_size=32, storage=tmp_path)
    plain = dataclasses.replace(strange, class_names=("tres calme ?", "wild"))
    assert np.array_equal(drawn(strange, tmp_path / "strange.png"), drawn(plain, tmp_path / "plain.png"))
