"""Disks that are full or read-only, by mounts of this machine's: a test that may not mount is left out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A disk of a few megabytes in memory, which can grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no byte, as another program may."""
        with suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))

    def grow(self, megabytes: float) -> None:
        subprocess.run(["mount", "-o", f"remount,{_size(megabytes)}", str(self.folder)], check=True)


def need_mounts(folder: Path) -> None:
    """Leave the test out where nothing can be mounted; ``folder`` is made."""
    with small_disk(folder, 1):
        pass


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[SmallDisk]:
    """A folder, which is made, whose disk holds so much."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", _size(megabytes), "tmpfs", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path, wait_for: Callable[[Callable[[], bool]], object]) -> Iterator[None]:
    """Take the right to write in ``folder`` from everybody, root too, as soon as no file there is being written."""
    _mount("--bind", str(folder), str(folder))
    try:
        remount = ["mount", "-o", "remount,bind,ro", str(folder)]
        wait_for(lambda: subprocess.run(remount, capture_output=True, check=False).returncode == 0)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _size(megabytes: float) -> str:
    return f"size={int(megabytes * 1024)}k"


def _mount(*arguments: str) -> None:
    mounted = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a disk needs root: {mounted.stderr.decode().strip()}")
