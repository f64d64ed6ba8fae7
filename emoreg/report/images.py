"""Figures as PNG and SVG, by kaleido in a Chrome or Chromium of this machine. Nothing is fetched from a network.

As a program it draws what it reads from stdin: in a process of its own, which can be ended if its browser hangs.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaleido
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

from emoreg.errors import EmoregError
from emoreg.storage.files import replacing
from emoreg.storage.permissions import make_folder
from emoreg.storage.working_copy import scratch

if TYPE_CHECKING:
    from emoreg.report.style import Figure  # which imports scikit-learn: the process that draws needs none of it

_WIDTH, _HEIGHT = 900, 500  # pixels, where a figure names none
_INK = "#1b1f24"
_DRAWN = "drawn.json"
"""Lists the images that a report has drawn, so that the next one removes its own and nobody else's."""
_SILENT_SECONDS = 60.0
"""A browser that draws nothing for so long hangs."""
_POLL_SECONDS = 0.2


class ImagesNotDrawn(EmoregError):
    """Why there are no images."""


def draw_images(figures: Mapping[str, Figure], folder: Path, on_image: Callable[[int, int], None] = lambda *_: None) -> None:
    """Write every figure to ``folder/NAME.png`` and ``.svg``, and remove what a former report has drawn and this one does not.

    ``on_image`` is told how many images are drawn, and of how many.

    Raises:
        ImagesNotDrawn: where no browser draws them.
    """
    make_folder(folder)
    wanted = {f"{name}.{kind}": (figure, kind) for (name, figure), kind in itertools.product(figures.items(), ("png", "svg"))}
    with scratch() as place:
        drawn = place / "drawn"
        drawn.mkdir()
        jobs = [_job(figure, kind, drawn / name) for name, (figure, kind) in wanted.items()]
        _draw_apart(jobs, drawn, on_image)
        for name in wanted:
            with replacing(folder / name) as stream:
                stream.write((drawn / name).read_bytes())
    _remove_former(folder, wanted)


def remove_images(folder: Path) -> None:
    """Remove what a former report has drawn into ``folder``, because the page beside it shows other figures now."""
    if (folder / _DRAWN).exists():
        _remove_former(folder, ())


def _job(figure: Figure, kind: str, path: Path) -> dict[str, Any]:
    """What kaleido is asked for: the figure on white."""
    drawn: dict[str, Any] = json.loads(figure.figure.to_json())
    layout = drawn["layout"]
    ink = {"font": {**layout.get("font", {}), "color": _INK}, "paper_bgcolor": "white", "plot_bgcolor": "white"}
    size = {"width": layout.get("width", _WIDTH), "height": layout.get("height", _HEIGHT), "scale": 2}
    return {"fig": {**drawn, "layout": {**layout, **ink}}, "path": str(path), "opts": {"format": kind, **size}}


def _draw_apart(jobs: list[dict[str, Any]], drawn: Path, on_image: Callable[[int, int], None]) -> None:
    """Have a process draw into ``drawn``; where that stands still, end it with the browser that it has started."""
    place = drawn.parent
    (place / "jobs").write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(place)}
    command = [sys.executable, "-m", "emoreg.report.images"]
    with open(place / "jobs") as told, open(place / "said", "w") as said:
        process = subprocess.Popen(command, stdin=told, stdout=said, stderr=subprocess.DEVNULL, env=environment)
    try:
        _follow(process, drawn, lambda count: on_image(count, len(jobs)))
    finally:
        for number in _with_descendants(process.pid) if process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        reason = (place / "said").read_text().strip()
        raise ImagesNotDrawn(reason or "PNG and SVG are left out, because what draws them has crashed")


def _follow(process: subprocess.Popen[bytes], drawn: Path, on_image: Callable[[int], None]) -> None:
    """Come back when the process has ended.

    Raises:
        ImagesNotDrawn: where nothing more is drawn, and it does not end.
    """
    count, latest = 0, time.monotonic()
    while time.monotonic() - latest < _SILENT_SECONDS:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return
        found = len(list(drawn.iterdir()))
        if found > count:
            count, latest = found, time.monotonic()
            on_image(count)
    raise ImagesNotDrawn(
        "Name a browser that works by BROWSER_PATH, or give --no-images: PNG and SVG are left out, because the browser drew "
        f"nothing for {_SILENT_SECONDS:g} seconds, and was ended"
    )


def _with_descendants(process: int) -> list[int]:
    """A process and all that it has started, as Linux tells; elsewhere the process."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = [process]
    for number in found:
        found += children[number]
    return found


def _draw() -> None:
    """Draw the jobs that stdin has, and exit; where that fails, stdout has the reason."""
    try:
        # MathJax would be fetched, and no figure has formulas; plotly.js is the installed one.
        kaleido.write_fig_from_object_sync(json.load(sys.stdin), cancel_on_error=True, kopts={"n": 2, "mathjax": False})
    except ChromeNotFoundError:
        print(
            "Install Chrome or Chromium for PNG and SVG, which are left out: `plotly_get_chrome` fetches one, and so does your "
            "distribution's package chromium"
        )
        sys.exit(1)
    except (KaleidoError, BrowserFailedError, BrowserClosedError) as error:
        print(f"PNG and SVG are left out, because the browser did not draw them ({error})")
        sys.exit(1)


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


if __name__ == "__main__":
    _draw()
