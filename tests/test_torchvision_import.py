"""A study file, or a user, may import torchvision and timm, whatever build of torch stands beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """\
import timm
import torchvision
from torchvision.transforms import v2

import emoreg

def study():
    return emoreg.Study(v2.Identity.__name__, search_space={"drop_path": emoreg.Float(0, 0.5)})
"""
READ_STUDY = """\
import sys
import emoreg
assert "torch" not in sys.modules
from emoreg.study_file import read_study_file
from emoreg.torchvision_import import ensure_operators
print(read_study_file(sys.argv[1]).name, ensure_operators())
"""


@pytest.mark.slow
def test_a_study_file_may_import_them_first(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STUDY)
    command = [sys.executable, "-c", READ_STUDY, str(tmp_path / "mine.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout in ("Identity compiled\n", "Identity declared\n"), done.stderr
