"""Pictures for TensorBoard, whose cards are some 340 pixels wide and drop pixels of wider pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emoreg.config import StudyConfig
from emoreg.data.sheet import draw_tiles, shortened
from emoreg.results.records import TrialRecord

if TYPE_CHECKING:  # of the extra `report`
    from matplotlib.figure import Figure

_MOST_FITTED = 100
"""Trials of a backbone that its curve is fitted to: of more, so many at random. The driver has other work."""


def sample_sheet(images: UInt8[Tensor, "N 3 S S"], captions: Sequence[str]) -> Image.Image:
    """N images in about a square, each below its caption."""
    tiles = list(zip(images.permute(0, 2, 3, 1).cpu().numpy(), captions, strict=True))
    columns = round(len(tiles) ** 0.5)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    return draw_tiles(rows, side=max(72, images.shape[-1]), font_size=10)


def confusion_matrix(counts: Int[Tensor, "C C"], class_names: Sequence[str]) -> Image.Image:
    """Counts by true class (rows) and predicted class (columns), each cell as dark as its share of its row.

    The picture is at most about 1,800 pixels wide: names fit up to 160 classes; counts do for fewer, the smaller they are.
    """
    numbers, font = counts.cpu().numpy(), ImageFont.load_default(10)
    count_width = font.getlength(str(numbers.max())) + 4
    cell = max(1, min(round(max(26, count_width)), 1600 // len(numbers)))
    names = [shortened(name, font, 110) for name in class_names] if cell >= 10 else []
    margin, size = 24 + max((round(font.getlength(name)) for name in names), default=0), cell * len(numbers)
    shares = numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1)
    shades = (255 - shares[..., None] * (247, 207, 148)).round().astype(np.uint8)
    picture = Image.new("RGB", (margin + size + 10, margin + size + 10), "white")
    picture.paste(Image.fromarray(shades).resize((size, size), Image.Resampling.NEAREST), (margin, margin))
    above = Image.new("RGB", (margin - 16, size), "white")  # names of columns, to be turned by a quarter
    draw, draw_above = ImageDraw.Draw(picture), ImageDraw.Draw(above)
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        draw.text((margin - 6, margin + middle), name, "black", font, anchor="rm")
        draw_above.text((6, middle), name, "black", font, anchor="lm")
    picture.paste(above.transpose(Image.Transpose.ROTATE_90), (margin, 16))
    draw.text((4, 2), "true class by row, predicted by column", "black", font)
    if cell >= count_width:
        for row, column in np.argwhere(numbers):
            ink = "white" if shares[row, column] > 0.5 else "black"
            place = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
            draw.text(place, str(numbers[row, column]), ink, font, anchor="mm")
    return picture


def response_figures(config: StudyConfig, records: Iterable[TrialRecord]) -> Iterator[tuple[str, Figure]]:
    """Validation accuracy of a search's finished trials against each searched number, by backbone.

    Yields:
        Path and figure: points, with the surrogate's mean and its 90 % band where there are enough.
    """
    from matplotlib.figure import Figure

    from emoreg.results.surrogate import FEWEST, Parameter, Surrogate, value_of

    by_backbone: dict[str, list[TrialRecord]] = {}
    for row in records:
        if row.is_searched and row.status == "finished" and row.val_accuracy is not None:
            by_backbone.setdefault(row.backbone, []).append(row)
    space = {path: distribution for path, distribution in config.search_space.items() if path != "backbone"}
    surrogates = {
        name: Surrogate(random.Random(0).sample(rows, min(len(rows), _MOST_FITTED)), space)
        for name, rows in by_backbone.items()
        if len(rows) >= FEWEST
    }
    for parameter in (Parameter(path=path, distribution=distribution) for path, distribution in space.items()):
        if not parameter.is_number or not by_backbone:
            continue
        figure = Figure(figsize=(3.4, 2.6), dpi=100, layout="constrained")
        scale = "log" if parameter.is_log else "linear"
        axes = figure.add_subplot(xlabel=parameter.path, ylabel="validation accuracy, %", xscale=scale)
        for index, (name, rows) in enumerate(sorted(by_backbone.items())):
            points = [
                (value, 100 * (row.val_accuracy or 0.0)) for row in rows if (value := value_of(row, parameter.path)) is not None
            ]
            axes.scatter(
                [value for value, _ in points], [accuracy for _, accuracy in points], 4, f"C{index}", alpha=0.5, label=name
            )
            if name in surrogates and surrogates[name].has(parameter.path):
                response = surrogates[name].response(parameter.path)
                mean, half = 100 * response.mean, 100 * response.half_width
                axes.plot(response.points[:, 0], mean, color=f"C{index}", linewidth=1)
                axes.fill_between(response.points[:, 0], mean - half, mean + half, color=f"C{index}", alpha=0.15, linewidth=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        yield parameter.path, figure
