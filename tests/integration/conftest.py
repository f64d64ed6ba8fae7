"""Fixtures of the tests that run whole studies."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path: Path, prepared: Path) -> Path:
    """A folder of the test's own, whose image sets are prepared once for all tests when it is a study's storage."""
    (tmp_path / "imagesets").symlink_to(prepared / "imagesets")
    return tmp_path
