"""Contact sheets: images on one page with their captions, small ones enlarged so that each pixel can be seen."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from emoreg.data.image_set import ImageSet

_COLUMNS = 12
_LARGE, _SMALL, _MANY_ROWS = 96, 64, 20  # sides of an image in pixels, and the number of rows above which it is the small one
_GAP = 8

Tile = tuple[UInt8[np.ndarray, "S S 3"], str]
"""An image and its caption. A caption takes the room above the tiles to its right that have none."""


def contact_sheet(image_set: ImageSet, path: Path) -> None:
    """Write a PNG with a row for each class: counts, and training images, evenly picked in the order of the set.

    For regression, the rows are the lowest and the highest of each target. Test images are counted and not shown: nobody
    should come to know them by accident.
    """
    rows = _regression_rows(image_set) if image_set.regression else _class_rows(image_set)
    title = f"{image_set.name}, {image_set.train.images.shape[1]} pixels, fingerprint {image_set.fingerprint[:12]}"
    draw_tiles(rows, side=_LARGE if len(rows) <= _MANY_ROWS else _SMALL, font_size=16, title=title).save(path, "PNG")


def draw_tiles(rows: Sequence[Sequence[Tile]], *, side: int, font_size: int, title: str = "") -> Image.Image:
    """Draw images below their captions, which are cut to their room.

    Args:
        rows: of images, all of one size.
        side: of a drawn image in pixels. Smaller ones are enlarged by a whole factor, without smoothing, and not above it.
        font_size: of all text, in pixels.
        title: above the images.
    """
    font, line_height = ImageFont.load_default(font_size), round(1.5 * font_size)
    pixels = len(rows[0][0][0])
    shown = pixels * max(1, side // pixels) if pixels <= side else side
    resampling = Image.Resampling.NEAREST if shown >= pixels else Image.Resampling.LANCZOS
    tile_width, row_height, top = max(shown, _SMALL) + _GAP, line_height + shown + _GAP, _GAP + line_height * bool(title)
    width = max(map(len, rows)) * tile_width + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), shortened(title, font, width - 2 * _GAP), "black", font)
    for number, row in enumerate(rows):
        y, right = top + number * row_height, width - _GAP
        for column, (image, caption) in reversed([*enumerate(row)]):
            x = _GAP + column * tile_width
            sheet.paste(Image.fromarray(image).resize((shown, shown), resampling), (x, y + line_height))
            if caption:
                draw.text((x, y), shortened(caption, font, right - x), "black", font)
                right = x - _GAP
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """``text`` as Pillow's own font can draw it, without accents and with ? for what is not ASCII, in ``width`` pixels."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = "".join(letters).encode("ascii", "replace").decode()
    cuts = (text, *(f"{text[:end]}..." for end in range(len(text) - 1, -1, -1)))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "")


def _class_rows(image_set: ImageSet) -> list[list[Tile]]:
    rows = []
    for target, name in enumerate(image_set.class_names):
        train, test = (np.flatnonzero(split.targets == target) for split in (image_set.train, image_set.test))
        evenly = train[np.linspace(0, len(train) - 1, min(_COLUMNS, len(train))).round().astype(int)]
        rows.append(_row(f"{name}: {len(train):,} train + {len(test):,} test", image_set.train.images[evenly]))
    return rows


def _regression_rows(image_set: ImageSet) -> list[list[Tile]]:
    rows = []
    for values, name in zip(image_set.train.targets.T, image_set.class_names, strict=True):
        order = np.argsort(values, kind="stable")
        for what, indices in (("lowest, from", order[:_COLUMNS]), ("highest, to", order[::-1][:_COLUMNS])):
            rows.append(_row(f"{name}, {what} {values[indices[0]]:.2f}", image_set.train.images[indices]))
    return rows


def _row(title: str, images: UInt8[np.ndarray, "N S S 3"]) -> list[Tile]:
    """Images below one title; a class without any has a white one."""
    shown = list(images) or [np.full(images.shape[1:], 255, np.uint8)]
    return [(image, "" if column else title) for column, image in enumerate(shown)]
