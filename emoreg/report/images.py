"""Figures as PNG and SVG, by kaleido in a Chrome or Chromium of this machine. Nothing is fetched from a network."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import kaleido
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError
from rich.console import Console
from rich.progress import Progress

from emoreg.report.drawing import Figure
from emoreg.storage.files import replacing

_WIDTH, _HEIGHT = 900, 500  # pixels, where a figure names none
_SCALE = 2
_INK = "#1b1f24"
_TABS = 2
_DRAWN = "drawn.json"
"""Lists the images that a report has drawn, so that the next one removes its own and nobody else's."""


def draw_images(figures: Mapping[str, Figure], folder: Path, console: Console) -> str:
    """Write every figure to ``folder/NAME.png`` and ``.svg``, and remove what a former report has drawn and this one does not.

    Args:
        figures: by name.
        folder: is made where it is missing.
        console: to show progress on.

    Returns:
        A line on what was written, or why nothing was.
    """
    try:
        asyncio.run(_draw(figures, folder, console))
    except ChromeNotFoundError:
        return (
            "figures: PNG and SVG are left out, which take a Chrome or Chromium: `plotly_get_chrome` fetches one, and so does "
            "your distribution's package chromium"
        )
    except (KaleidoError, BrowserFailedError, BrowserClosedError) as error:
        return f"figures: PNG and SVG are left out, because the browser did not draw them ({error})"
    return f"figures: {folder} ({len(figures)} as PNG and SVG)"


async def _draw(figures: Mapping[str, Figure], folder: Path, console: Console) -> None:
    wanted = {f"{name}.{kind}": figure for (name, figure), kind in itertools.product(figures.items(), ("png", "svg"))}
    # MathJax would be fetched, and no figure has formulas; plotly.js is the installed one.
    async with kaleido.Kaleido(n=_TABS, mathjax=False) as browser:
        left = iter(wanted.items())
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("Drawing figures", total=len(wanted))

            async def work() -> None:
                for name, figure in left:
                    content = await browser.calc_fig(_on_white(figure), _options(figure, name.rpartition(".")[2]))
                    with replacing(folder / name) as stream:
                        stream.write(content)
                    progress.advance(task)

            await asyncio.gather(*(work() for _ in range(_TABS)))
    _remove_former(folder, wanted)


def _on_white(figure: Figure) -> dict[str, Any]:
    drawn: dict[str, Any] = figure.figure.to_dict()
    layout = drawn["layout"]
    font = {**layout.get("font", {}), "color": _INK}
    drawn["layout"] = {**layout, "font": font, "paper_bgcolor": "white", "plot_bgcolor": "white"}
    return drawn


def _options(figure: Figure, kind: str) -> dict[str, Any]:
    layout = figure.figure.layout
    return {"format": kind, "width": layout.width or _WIDTH, "height": layout.height or _HEIGHT, "scale": _SCALE}


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
