"""The code that runs: its commit, asked of git or brought along where there is none, and the studies that come with it."""

from __future__ import annotations

import pkgutil
import subprocess
from pathlib import Path

import emoreg

COMMIT_FILE = "emoreg/commit.txt"
"""Where code that travels to a cluster says which commit it was made of: there is no git to ask."""
_DESCRIBE = ("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
_TIMEOUT_SECONDS = 60.0


def git(folder: Path, *arguments: str) -> str:
    """The output of git, or nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def own_commit() -> str | None:
    """The commit of the checkout that emoreg runs from, with ``+`` if it was changed; None outside one."""
    folder = Path(emoreg.__file__).resolve().parents[1]
    carried = folder / COMMIT_FILE
    if carried.exists():
        return carried.read_text().strip()
    if not is_checkout(folder):  # installed into an environment, which may lie in somebody's checkout of something else
        return None
    return git(folder, *_DESCRIBE).strip() or None


def is_checkout(folder: Path) -> bool:
    """Whether git tracks emoreg in a folder."""
    return bool(git(folder, "ls-files", "emoreg/__init__.py"))


def shipped_studies() -> list[str]:
    """The studies that come with emoreg."""
    import studies

    return [f"studies.{module.name}" for module in pkgutil.iter_modules(studies.__path__)]
