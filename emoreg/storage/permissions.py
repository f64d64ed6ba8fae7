"""Whose files are: a storage that allows its group to write has files that the group may write, whatever anybody's umask."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

from emoreg.errors import StorageError


def user_name(number: int) -> str:
    """The name of a user, whom a container need not know by more than the number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing: see ``share``."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):  # another process has made it
            folder.mkdir()
            share(folder)
        if not folder.is_dir():
            raise NotADirectoryError(20, "Not a directory", str(folder))


def share(path: Path) -> None:
    """Allow the group of a new file or folder what the folder around it allows the same group.

    A folder that is everybody's, with the sticky bit, as /tmp, shares nothing.
    """
    with suppress(OSError):  # gone meanwhile, or another user's, or a file system that has modes of its own
        own, around = path.stat(), path.parent.stat()
        allowed = around.st_mode & (stat.S_IRWXG if stat.S_ISDIR(own.st_mode) else stat.S_IRGRP | stat.S_IWGRP)
        is_shared = own.st_gid == around.st_gid and not around.st_mode & stat.S_ISVTX
        if is_shared and allowed & ~own.st_mode:
            path.chmod(stat.S_IMODE(own.st_mode) | allowed)


def check_writable(path: Path) -> None:
    """Refuse a file or a folder that is there and that this user cannot write to.

    Raises:
        StorageError: naming whose it is.
    """
    wanted = os.W_OK | (os.X_OK if path.is_dir() else 0)
    if path.exists() and not os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids):
        owner = user_name(path.stat().st_uid)
        raise StorageError(
            f"Ask {owner} to run `chmod -R g+rwX` on it, or name another storage: all users of a storage must be able to write "
            f"to it, but {str(path)!r} belongs to {owner}, and {user_name(os.geteuid())} cannot"
        )
