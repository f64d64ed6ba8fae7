"""Prepared image sets on the machines of a cluster: each is fetched once a machine, from where the driver has put it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emoreg.config import ImageSetConfig
from emoreg.config.resolved import Source, source_of
from emoreg.data.image_set import ImageSet
from emoreg.data.prepare import Prepared, load, prepared_file
from emoreg.data.prepared import obtain
from emoreg.errors import StorageError
from emoreg.storage.files import Files, replacing


def offer(config: ImageSetConfig, *, image_size: int, storage: Path, files: Files) -> Prepared:
    """Prepare a set in ``storage``, a folder of this machine, and see that it is among ``files``, which all machines see."""
    load(config, image_size=image_size, storage=storage)
    prepared = prepared_file(config, image_size=image_size, storage=storage)
    folder = storage / "imagesets"
    is_there = files.folder is not None and folder.resolve() == files.folder.resolve()
    if not is_there and not files.exists(prepared.name):
        files.write(prepared.name, memoryview((folder / prepared.name).read_bytes()))
    return prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedSets:
    """Loads image sets from a folder of this machine, where they are fetched to from ``files`` first. A ``LoadImages``."""

    offered: Mapping[Source, Prepared]
    files: Files
    folder: Path

    def __call__(self, config: ImageSetConfig, *, image_size: int) -> ImageSet:
        """The image set, whole; see ``load``.

        Raises:
            StorageError: where the storage does not have it, or has another one.
        """
        prepared = self.offered[source_of(config, image_size)]

        def fetch(path: Path) -> None:
            with replacing(path) as stream:
                stream.write(self.files.read(prepared.name))

        image_set = obtain(self.folder / prepared.name, config.name, prepared.key, fetch)
        if image_set is None:
            raise StorageError(
                f"Remove {prepared.name} from {self.files.uri!r} and run the study again: it must be the image set that the "
                "driver prepared, but it is not"
            )
        return image_set
