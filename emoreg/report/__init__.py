"""A study's report: one HTML file, and its figures as images, from the records alone. Imports neither torch nor Ray."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from emoreg.errors import ConfigError, StorageError
from emoreg.report.answer import notes, verdict_lines
from emoreg.report.drawing import Figure, labels
from emoreg.report.figures import comparison, figures_of
from emoreg.report.images import draw_images
from emoreg.report.page import Part, render
from emoreg.results.study import load_study
from emoreg.storage.files import Files, replacing


def print_report(
    places: Sequence[str], output: str | None, *, price_per_hour: float | None, images: bool, console: Console
) -> int:
    """Write the report of one study, or of several side by side, and say what they answer.

    Args:
        places: folders or URIs of the studies.
        output: folder to write to; None: ``report`` in the folder of the first study, or ``report/NAME`` here where it lies
            in an object store.
        price_per_hour: what an hour of the device costs.
        images: whether every figure becomes a PNG and an SVG too.
        console: to show progress and the answer on.

    Returns:
        The exit code.

    Raises:
        UserError: for a study that is not there, cannot be read or is named twice, and a folder that cannot be written to.
    """
    [(place, times)] = Counter(Files(place).location for place in places).most_common(1)
    if times > 1:
        raise ConfigError(f"a report must name each study once, but {place!r} is named {times} times: drop one")
    studies = [load_study(place) for place in places]
    folder = Path(output).expanduser() if output is not None else _default_folder(places[0], studies[0].name)
    with _writing_to(folder):  # before the figures, which take their time
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Making figures", total=len(studies) + 1)
        compared = comparison(studies) if len(studies) > 1 else []
        progress.advance(task)
        parts = []
        for label, study in zip(labels(studies), studies, strict=True):
            parts.append(Part(study=study, label=label, figures=tuple(figures_of(study))))
            progress.advance(task)
    with _writing_to(folder), replacing(folder / "index.html") as stream:
        stream.write(render(parts, compared, price_per_hour).encode())
    for part in parts:
        for line in verdict_lines(part.study):
            name = f"{part.label}: " if len(parts) > 1 else ""
            console.print(f"{name}{line.text}", style="bold", markup=False, soft_wrap=True)
        for note in notes(part.study):
            console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(f"report:  {folder / 'index.html'}", markup=False, soft_wrap=True)
    if images:
        with _writing_to(folder):
            said = draw_images(_named(parts, compared), folder / "figures", console)
        console.print(said, markup=False, soft_wrap=True)
    return 0


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"a report needs a folder that can be written to, but {str(folder)!r} is none ({error.strerror or error}): name "
            "another with --output"
        ) from error


def _default_folder(place: str, name: str) -> Path:
    folder = Files(place).folder
    return Path("report") / name if folder is None else folder / "report"


def _named(parts: Sequence[Part], compared: Sequence[Figure]) -> dict[str, Figure]:
    """Every figure by the name of its images: of several studies, each study's begin with its number."""
    found = {figure.name: figure for figure in compared}
    for index, part in enumerate(parts, 1):
        found |= {
            figure.name if len(parts) == 1 else f"{index}-{part.study.name}-{figure.name}": figure for figure in part.figures
        }
    return found
