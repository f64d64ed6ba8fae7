"""The same study file as a program and under ``emoreg run``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from PIL import Image

import emoreg
from emoreg.training.backbones import create_encoder
from tests.helpers.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
MINE = """\
import dataclasses

import emoreg
from my_helper import HALF


@emoreg.control("halved")
def halved(trial):
    return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, balance=HALF))


digits = {"name": "digits", "num_images": 60}
study = emoreg.Study(
    "mine",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=8,
        stimuli=emoreg.ImageSetConfig(**digits, validation_fraction=0.0),
        task=emoreg.ImageSetConfig(**digits, split_seed=1),
        pretraining=emoreg.PretrainingConfig(epochs=1, batch_size=16),
        regulation=emoreg.RegulationConfig(epochs=1, batch_size=16),
        metrics=("macro_f1",),
        deterministic=True,
    ),
    objectives=(emoreg.Objective(metric="val_macro_f1"),),
    search_space={"regulation.balance": emoreg.Float(0.05, 0.95)},
    num_trials=1,
    controls=("regulated", "halved"),
)

if __name__ == "__main__":
    study.run()
    print("best", study.best["test_resnet"].identity)
    print(repr(study))
"""


@pytest.mark.slow
def test_a_study_file_runs_as_a_program_and_under_emoreg_run(storage: Path, tmp_path: Path) -> None:
    """With a control of its own, which needs a module beside it: what the program has run, the command finds."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_helper.py").write_text("HALF = 0.25\n")
    storage.rename(tmp_path / "runs")
    program = run(tmp_path, "mine.py")
    assert "3 trials: 3 finished, in " in program
    assert "\nbest " in program
    assert "Study('mine', 1 trial over regulation.balance, in runs/mine: ended, 3 finished; best val_macro_f1 " in program
    study = emoreg.load_study(tmp_path / "runs" / "mine")
    assert {row.control: row.balance for row in study.trials if row.role == "control"} == {"regulated": 0.5, "halved": 0.25}
    command = run(tmp_path, "-m", "emoreg", "run", "mine.py")
    assert "3 trials: 3 finished, none was missing." in command
    assert "halved" in command


@pytest.mark.slow
def test_one_of_each_thing_that_a_study_s_file_may_bring(tmp_path: Path) -> None:
    """The worked examples of studies/README.md, in workers; then confirmed, in a process that reads the file anew."""
    run(tmp_path, "-m", "emoreg", "run", "studies.own_code", "--num-trials", "1")
    study = emoreg.load_study(tmp_path / "runs" / "own-code")
    rows = study.trials_frame().set_index("control")
    assert set(rows.index) == {"regulated", "plain", "short_pretraining"}
    assert (rows.task == "stripes").all()
    assert (rows.backbone == "two_layers").all()
    assert rows.metrics.map(json.loads).map(lambda found: 0 <= found["val_worst_recall"] <= 1).all()
    probes = pandas.read_parquet(tmp_path / "runs" / "own-code" / "records" / "probes.parquet")
    assert set(probes.probe) == {"confidence"}
    assert ((probes.value > 0.5) & (probes.value <= 1)).all()
    plan = run(tmp_path, "-m", "emoreg", "confirm", "studies.own_code", "--seeds", "3", "--dry-run")
    assert "short_pretraining" in plan
    run(tmp_path, "-m", "emoreg", "export", "studies.own_code", "--to", "model")
    load = "import emoreg, studies.own_code, torch; print(emoreg.load_network('model')(torch.rand(2, 3, 16, 16)).shape)"
    assert run(tmp_path, "-c", load).strip() == "torch.Size([2, 2])"


@pytest.mark.slow
def test_relative_paths_of_images_and_weights_lead_from_where_the_command_was_typed(tmp_path: Path) -> None:
    for number, split in enumerate(("Train", "Test", "Train", "Test")):
        folder = tmp_path / "faces" / split / ("happy" if number < 2 else "sad")
        folder.mkdir(parents=True)
        for image in range(4):
            pixels = numpy.random.default_rng(10 * number + image).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    (tmp_path / "mine.py").write_text(MINE.replace("from my_helper import HALF", "HALF = 0.25"))
    encoder = create_encoder("test_resnet", image_size=8, drop_path=0.0, weights=None, seed=5)
    torch.save(
        {"state_dict": {f"net.{name}": value for name, value in encoder.model.state_dict().items()}}, tmp_path / "w.ckpt"
    )
    options = ("--trial.stimuli.name", "folder", "--trial.stimuli.path", "faces", "--trial.stimuli.num-images", "None")
    said = run(tmp_path, "-m", "emoreg", "run", "mine.py", *options, "--trial.weights", "w.ckpt", "--controls", "regulated")
    assert "2 trials: 2 finished" in said


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
