"""What studies/README.md shows runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import emoreg
from emoreg.config import replace_paths
from tests.helpers.networks import trained_study
from tests.helpers.trials import TINY
from tests.helpers.waiting import PATIENCE

README = Path(__file__).parents[2] / "studies" / "README.md"


@pytest.mark.usefixtures("torch_threads")
def test_a_network_is_exported_loaded_and_asked(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text().partition("## The trained network")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "imagesets").symlink_to(prepared / "imagesets")
    trained_study(tmp_path / "runs", replace_paths(TINY, {"regulation.epochs": 1}), name="quickstart")
    Image.fromarray(np.full((20, 20), 200, dtype=np.uint8)).save("digit.png")
    exec(compile(example, str(README), "exec"), {})
    predicted, probability = capsys.readouterr().out.split()
    assert predicted in map(str, range(10))
    assert 0.1 <= float(probability) <= 1.0


def draw_face(path: Path, person: int, number: int, mouth: int) -> None:
    """A face in a person's colours, whose mouth is bent up or down."""
    random = np.random.default_rng([person, number, mouth + 1])
    face = Image.new("RGB", (24, 24), tuple(np.random.default_rng(person).integers(0, 120, 3).tolist()))
    draw = ImageDraw.Draw(face)
    x, y = random.integers(-2, 3, 2).tolist()
    draw.ellipse((x + 2, y + 2, x + 21, y + 21), fill=tuple(random.integers(180, 255, 3).tolist()))
    draw.arc((x + 6, y + 9, x + 17, y + 19), 20 if mouth > 0 else 200, 160 if mouth > 0 else 340, fill="black", width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    face.save(path)


@pytest.mark.slow
def test_a_day_with_faces_of_ones_own(tmp_path: Path) -> None:
    day = README.read_text().partition("## A day with faces of your own")[2].partition("\n## ")[0]
    program, asking = re.findall(r"```python\n(.*?)```", day, re.DOTALL)
    prepare, run, export = re.findall(r"^    emoreg (.*)", day, re.MULTILINE)
    for person, name in enumerate(("ann", "bob", "cyd", "dan", "eva", "fay", "zoe")):
        split = "Testing" if name == "zoe" else "Training"
        for label, num in (("happy", 12), ("sad", 5)):
            for number in range(1, num + 1):
                draw_face(
                    tmp_path / "faces" / split / name / label / f"{number}.png", person, number, 1 if label == "happy" else -1
                )
    (tmp_path / "expressions.py").write_text(program)

    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    understood = " ".join(said("-m", "emoreg", *shlex.split(prepare)).split())
    assert "folder: 102 training and 17 test images of 16 px" in understood
    assert "train 102 6 Training test 17 1 Testing" in understood
    assert "happy 72 12 sad 30 5" in understood
    assert "5 trials: 5 finished" in said("-m", "emoreg", *shlex.split(run))
    study = emoreg.load_study(tmp_path / "runs" / "expressions")
    assert study.results.config.budget.hours == pytest.approx(5 / 60)
    (task,) = (images for images in study.results.written.images if images.role == "task")
    assert (task.num_train + task.num_validation, task.num_groups) == (102, 6)
    assert task.num_validation % 17 == 0, "people are whole"
    assert "val_worst_recall" in study.trials_frame().metrics.iloc[0]
    said("-m", "emoreg", *shlex.split(export))
    assert said("-c", asking).strip() in ("happy", "sad")
