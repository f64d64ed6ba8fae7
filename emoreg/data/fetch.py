"""Prepared image sets on the machines of a cluster: each is fetched once a machine, from where the driver has put it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from emoreg.config import ImageSetConfig
from emoreg.data.imageset import ImageSet
from emoreg.data.prepare import load, open_prepared, prepared_file
from emoreg.errors import StorageError
from emoreg.storage.files import Files, replacing

Source = tuple[str, str | None, str | None, int]
"""Name, path, target and image size: what a prepared file is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A prepared file in the storage: its name, and the key in it that says what it was made of."""

    name: str
    key: str


def source(config: ImageSetConfig, image_size: int) -> Source:
    """What the set is made of; the subset and the split that ``config`` asks for are not of the file."""
    return config.name, config.path, config.target, image_size


def offer(config: ImageSetConfig, *, image_size: int, storage: Path, files: Files) -> Prepared:
    """Prepare a set in ``storage``, a folder of this machine, and see that it is among ``files``, which all machines see."""
    load(config, image_size=image_size, storage=storage)
    path, key = prepared_file(config, image_size=image_size, storage=storage)
    is_there = files.folder is not None and path.parent.resolve() == files.folder.resolve()
    if not is_there and not files.exists(path.name):
        files.write(path.name, memoryview(path.read_bytes()))
    return Prepared(name=path.name, key=key)


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
        prepared = self.offered[source(config, image_size)]
        path = self.folder / prepared.name
        image_set = open_prepared(path, config.name, prepared.key)
        if image_set is not None:
            return image_set
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            image_set = open_prepared(path, config.name, prepared.key)  # another trial may have fetched it meanwhile
            if image_set is None:
                with replacing(path) as stream:
                    stream.write(self.files.read(prepared.name))
                image_set = open_prepared(path, config.name, prepared.key)
        if image_set is None:
            raise StorageError(
                f"a prepared image set must be what the driver prepared, but {prepared.name} in {self.files.uri!r} is not: "
                "remove it there, and run the study again"
            )
        return image_set
