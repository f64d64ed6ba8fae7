"""A contact sheet: what a network is about to learn from, on one page, as pixels, counts and oddities."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from emoreg.data.image_set import ImageSet, Split

_COLUMNS = 12
_LARGE, _SMALL = 96, 64  # largest sides of a picture, for a few classes and for many
_TEXT_HEIGHT = 48  # of the two lines beside a row
_MANY_CLASSES = 20
_MARGIN, _GAP, _LABELS = 48, 8, 280
_INK, _MUTED, _LINE, _PAPER = "#1b1f24", "#667085", "#dfe3e8", "#ffffff"

_Row = tuple[str, str, Int[np.ndarray, " N"]]
"""Title, note, and the indices of the training images that belong in the row."""


def contact_sheet(image_set: ImageSet, path: Path) -> None:
    """Write a PNG with a row for each class: training images, evenly picked in the order of the set, and counts.

    For regression, the rows are the lowest and the highest of each target. Test images are counted and not shown: nobody
    should come to know them by accident.
    """
    rows = _regression_rows(image_set) if image_set.regression else _class_rows(image_set)
    side = _LARGE if len(rows) <= _MANY_CLASSES else _SMALL
    shown = _shown_side(image_set.train, side)
    title, plain, small = (ImageFont.load_default(size) for size in (40, 22, 18))
    pixels = image_set.train.images.shape[1]
    outputs = "with {} targets" if image_set.regression else "in {} classes"
    facts = (
        f"{len(image_set.train):,} train + {len(image_set.test):,} test images of {pixels} x {pixels} pixels "
        f"{outputs.format(image_set.num_outputs)}, fingerprint {image_set.fingerprint[:12]}"
    )
    width_of_rows = _MARGIN + _LABELS + _COLUMNS * (shown + _GAP) - _GAP
    width = max(width_of_rows, _MARGIN + math.ceil(plain.getlength(facts))) + _MARGIN
    row_height = max(shown, _TEXT_HEIGHT) + _GAP
    notes = _notes(image_set, characters=(width - 2 * _MARGIN) // 9)
    top = _MARGIN + 148
    height = top + len(rows) * row_height + (32 + 26 * len(notes) if notes else 0) + _MARGIN - _GAP

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _drawable(image_set.name), _INK, title, anchor="la")
    draw.text((_MARGIN, _MARGIN + 56), facts, _MUTED, plain, anchor="la")
    draw.line((_MARGIN, _MARGIN + 104, width - _MARGIN, _MARGIN + 104), _LINE)
    draw.text((_MARGIN + _LABELS, top - 10), "training images", _MUTED, small, anchor="ls")

    for number, (name, note, indices) in enumerate(rows):
        y = top + number * row_height
        middle = y + shown // 2
        draw.text((_MARGIN, middle - 2), _fitting(_drawable(name), plain, _LABELS - 24), _INK, plain, anchor="ls")
        draw.text((_MARGIN, middle + 4), note, _MUTED, small, anchor="la")
        for column, index in enumerate(_evenly(indices, _COLUMNS)):
            x = _MARGIN + _LABELS + column * (shown + _GAP)
            sheet.paste(_picture(image_set.train.images[index], shown), (x, y))
            draw.rectangle((x - 1, y - 1, x + shown, y + shown), outline=_LINE)

    for number, line in enumerate(notes):
        y = top + len(rows) * row_height + 24 + 26 * number
        draw.text((_MARGIN, y), line, _MUTED, small, anchor="la")
    sheet.save(path, "PNG")


def _class_rows(image_set: ImageSet) -> list[_Row]:
    rows: list[_Row] = []
    for index, name in enumerate(image_set.class_names):
        train, test = (np.flatnonzero(split.targets == index) for split in (image_set.train, image_set.test))
        rows.append((name, f"{len(train):,} train + {len(test):,} test", train))
    return rows


def _regression_rows(image_set: ImageSet) -> list[_Row]:
    rows: list[_Row] = []
    for column, name in enumerate(image_set.class_names):
        order = np.argsort(image_set.train.targets[:, column], kind="stable")
        low, high = image_set.train.targets[order[[0, -1]], column]
        rows.append((f"{name}, lowest", f"from {low:.2f}", order[:_COLUMNS]))
        rows.append((f"{name}, highest", f"to {high:.2f}", order[::-1][:_COLUMNS]))
    return rows


def _evenly(indices: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " M"]:
    return np.asarray(indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)])


def _shown_side(split: Split, side: int) -> int:
    """The side of a picture on the sheet: a whole multiple of its pixels where these are few, so that each one is seen."""
    pixels = split.images.shape[1]
    return pixels * max(1, side // pixels) if pixels <= side else side


def _picture(image: UInt8[np.ndarray, "S S 3"], shown: int) -> Image.Image:
    enlarge = shown >= len(image)
    return Image.fromarray(image).resize((shown, shown), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _notes(image_set: ImageSet, characters: int) -> list[str]:
    text = [f"{what}: {count:,}" for what, count in image_set.summary.items()]
    return [line for note in text for line in textwrap.wrap(_drawable(note), characters)]


def _drawable(text: str) -> str:
    """The text without accents, with ? for what is not ASCII: Pillow's own font has little else."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()
