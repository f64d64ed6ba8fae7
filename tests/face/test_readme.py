"""What studies/README.md shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emoreg.config import replace_paths
from tests.helpers.networks import trained_study
from tests.helpers.trials import TINY

README = Path(__file__).parents[2] / "studies" / "README.md"


@pytest.mark.usefixtures("torch_threads")
def test_a_network_is_exported_loaded_and_asked(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n((?:(?!```).)*?load_network.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "imagesets").symlink_to(prepared / "imagesets")
    trained_study(tmp_path / "runs", replace_paths(TINY, {"regulation.epochs": 1}), name="quickstart")
    Image.fromarray(np.full((20, 20), 200, dtype=np.uint8)).save("digit.png")
    exec(compile(example, str(README), "exec"), {})
    predicted, probability = capsys.readouterr().out.split()
    assert predicted in map(str, range(10))
    assert 0.1 <= float(probability) <= 1.0
