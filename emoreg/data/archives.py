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
    OSError,  # of gzip and bz2; those that have a number are the system's
    RuntimeError,  # a password is asked for
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_CHUNK_BYTES = 2**20
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
            _unpack_tar(archive, folder)
    except _NOT_WHOLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageSetError(
            f"Fetch {archive} again: it must be a whole archive, but it cannot be unpacked ({error})"
        ) from error
    return replace(request, path=str(folder))


def _unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar, compressed or not, and make sure that its end is its end: tarfile takes a damaged header for it."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")  # nothing leaves the folder
        stream = tar.fileobj
        assert stream is not None
        stream.seek(tar.offset)
        ends = False
        while rest := stream.read(_CHUNK_BYTES):  # to the end, where compression has its checksum
            if any(rest):
                raise tarfile.ReadError("damaged between two of its files")
            ends = True
        if not ends:
            raise tarfile.ReadError("cut short")


def _archive(request: ImageSetRequest, reader: Reader) -> Path | None:
    """The archive at the path of a reader of emoreg's; a user's own opens what it likes."""
    path = request.local
    is_archive = path is not None and path.name.lower().endswith(_SUFFIXES) and path.is_file()
    return path if is_archive and reader.fingerprint is None else None
