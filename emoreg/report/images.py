"""Figures as PNG and SVG, by kaleido in a Chrome or Chromium of this machine. Nothing is fetched from a network."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import kaleido
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

from emoreg.errors import EmoregError
from emoreg.report.style import Figure
from emoreg.storage.files import replacing

_WIDTH, _HEIGHT = 900, 500  # pixels, where a figure names none
_INK = "#1b1f24"
_DRAWN = "drawn.json"
"""Lists the images that a report has drawn, so that the next one removes its own and nobody else's."""


class ImagesNotDrawn(EmoregError):
    """Why there are no images."""


def draw_images(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write every figure to ``folder/NAME.png`` and ``.svg``, and remove what a former report has drawn and this one does not.

    Raises:
        ImagesNotDrawn: where no browser draws them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{name}.{kind}": (figure, kind) for (name, figure), kind in itertools.product(figures.items(), ("png", "svg"))}
    jobs = [_job(figure, kind, folder / name) for name, (figure, kind) in wanted.items()]
    try:
        # MathJax would be fetched, and no figure has formulas; plotly.js is the installed one.
        kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"n": 2, "mathjax": False})
    except ChromeNotFoundError as error:
        raise ImagesNotDrawn(
            "Install Chrome or Chromium for PNG and SVG, which are left out: `plotly_get_chrome` fetches one, and so does your "
            "distribution's package chromium"
        ) from error
    except (KaleidoError, BrowserFailedError, BrowserClosedError) as error:
        raise ImagesNotDrawn(f"PNG and SVG are left out, because the browser did not draw them ({error})") from error
    _remove_former(folder, wanted)


def _job(figure: Figure, kind: str, path: Path) -> dict[str, Any]:
    """What kaleido is asked for: the figure on white."""
    drawn: dict[str, Any] = figure.figure.to_dict()
    layout = drawn["layout"]
    ink = {"font": {**layout.get("font", {}), "color": _INK}, "paper_bgcolor": "white", "plot_bgcolor": "white"}
    size = {"width": layout.get("width", _WIDTH), "height": layout.get("height", _HEIGHT), "scale": 2}
    return {"fig": {**drawn, "layout": {**layout, **ink}}, "path": str(path), "opts": {"format": kind, **size}}


def _remove_former(folder: Path, drawn: Iterable[str]) -> None:
    path = folder / _DRAWN
    try:
        former = {*map(str, json.loads(path.read_bytes()))}
    except (FileNotFoundError, ValueError, TypeError):  # the first, or whatever someone put there
        former = set()
    for name in former - {*drawn}:
        (folder / Path(name).name).unlink(missing_ok=True)
    with replacing(path) as stream:
        stream.write(json.dumps(sorted(drawn)).encode())
