"""Image sets that lie in an archive (zip, tar) or in the hub: unpacked for the time of their preparation, never beside it."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from emoreg.data.hub import fetch
from emoreg.data.layout import stamp_of
from emoreg.data.reader import ImageSetRequest, Reader
from emoreg.errors import ImageSetError

_NOT_WHOLE = (
    EOFError,
    OSError,
    RuntimeError,  # a password is asked for
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_SUFFIXES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)


def stamp(request: ImageSetRequest, reader: Reader) -> list[str]:
    """The lines that change when the source of the images does: an archive's own, where that is what the path names."""
    if request.is_of_hub:
        return [str(request.path)]
    archive = _archive(request, reader)
    return reader.stamp(request) if archive is None else stamp_of([archive], archive.parent)


def unpacked(request: ImageSetRequest, reader: Reader, scratch: Path) -> ImageSetRequest:
    """The request, for the folder below ``scratch`` that its archive or set of the hub was unpacked to, where it names one.

    Raises:
        ImageSetError: for an archive that is not whole, or a set that cannot be had.
    """
    folder, archive = scratch / "unpacked", _archive(request, reader)
    if request.is_of_hub:
        fetch(str(request.path), folder)
        return replace(request, path=str(folder))
    if archive is None:
        return request
    try:
        if archive.suffix.lower() == ".zip":
            shutil.unpack_archive(archive, folder)
        else:
            shutil.unpack_archive(archive, folder, filter="data")  # nothing leaves the folder
    except _NOT_WHOLE as error:
        raise ImageSetError(
            f"Fetch {archive} again: it must be a whole archive, but it cannot be unpacked ({error})"
        ) from error
    return replace(request, path=str(folder))


def _archive(request: ImageSetRequest, reader: Reader) -> Path | None:
    """The archive at the path of a reader of emoreg's; a user's own opens what it likes."""
    path = request.local
    is_archive = path is not None and path.name.lower().endswith(_SUFFIXES) and path.is_file()
    return path if is_archive and reader.fingerprint is None else None
