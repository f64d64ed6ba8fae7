"""A study's report: one HTML file, and its figures as images, from the records alone. Imports neither torch nor Ray."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from emoreg.errors import ConfigError, StorageError
from emoreg.results.across import together
from emoreg.results.study import StudyResults, load_results
from emoreg.storage.files import expand, replacing
from emoreg.storage.permissions import make_folder

OnProgress = Callable[[str, int, int], None]
"""Told what is done, how much of it has been done, and of how much."""


_LONGEST_NAME = 120
"""Of a folder for several studies, in characters: file systems allow 255 bytes."""


class ReportWarning(UserWarning):
    """What a report had to leave out."""


def write_report(
    places: Sequence[str | Path | StudyResults],
    *,
    output: str | Path | None = None,
    price_per_hour: float | None = None,
    images: bool = True,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write the report of one study, or of several side by side.

    The page comes first, then the images. Where these are left out, for want of a browser or because it hangs, it warns
    (``ReportWarning``).

    Args:
        places: folders or URIs of the studies, or what was read from them.
        output: folder to write to; None: ``report`` in the study's folder, of several studies ``A+B.report`` beside that of
            the first, and both in ``report`` here where it lies in an object store.
        price_per_hour: what an hour of the device costs.
        images: whether every figure becomes a PNG and an SVG too.
        on_progress: told how far it is.

    Returns:
        The path of ``index.html``.

    Raises:
        ConfigError: for a study that is not there or named twice, and without the extra ``report``.
        StorageError: for a study that cannot be read, and a folder that cannot be written to.
    """
    try:
        from emoreg.report.images import ImagesNotDrawn, draw_images, remove_images
        from emoreg.report.page import make_page
    except ModuleNotFoundError as error:
        raise ConfigError(f"Install the report extra: pip install 'emoreg[report]' (a report needs {error.name})") from error
    tell = on_progress or (lambda what, done, total: None)
    studies = read_studies(places)
    folder = _open_folder(output, studies)  # before the figures, which take their time
    page, figures = make_page(studies, price_per_hour, lambda done: tell("Making figures", done, len(studies)))
    with _writing_to(folder):
        with replacing(folder / "index.html") as stream:
            stream.write(page.encode())
        if images:
            on_image, total = partial(tell, "Drawing images"), 2 * len(figures)
            on_image(0, total)
            try:
                draw_images(figures, folder / "figures", on_image)
            except ImagesNotDrawn as error:
                warnings.warn(str(error), ReportWarning, stacklevel=2)
            on_image(total, total)
        else:
            remove_images(folder / "figures")
    return folder / "index.html"


def read_studies(places: Sequence[str | Path | StudyResults]) -> list[StudyResults]:
    """The studies of a report: of several, the verdicts of each are corrected for the ladders of all.

    Raises:
        ConfigError: for a study that is not there, or named twice.
        StorageError: for one that cannot be read.
    """
    studies = [place if isinstance(place, StudyResults) else load_results(place) for place in places]
    [(place, times)] = Counter(str(study.folder or study.place) for study in studies).most_common(1)
    if times > 1:
        raise ConfigError(f"Name each study once in a report: {place!r} is named {times} times")
    return together(studies)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Name another folder with --output: a report needs one that can be written to, but {str(folder)!r} is none "
            f"({error.strerror or error})"
        ) from error


def _open_folder(output: str | Path | None, studies: Sequence[StudyResults]) -> Path:
    """The folder to write to, made, and found to let itself be written to."""
    folder = default_folder(studies) if output is None else expand(output)
    with _writing_to(folder):
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def default_folder(studies: Sequence[StudyResults]) -> Path:
    """Where these studies are reported: nowhere else, so that no report takes another one's place."""
    first = studies[0]
    if len(studies) == 1:
        return Path("report") / first.name if first.folder is None else first.folder / "report"
    names = "+".join(study.name for study in studies)
    if len(names) > _LONGEST_NAME:
        names = f"{first.name}+{len(studies) - 1}-more-{hashlib.sha256(names.encode()).hexdigest()[:6]}"
    return Path("report") / names if first.folder is None else first.folder.parent / f"{names}.report"
