"""What a process imports before it is asked for: every second of it is paid by each command, each worker, each study."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emoreg.config import ImageSetConfig
from emoreg.data import load

HELP = "import sys; from emoreg.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
HEAVY = {"torch", "ray", "optuna", "pandas", "scipy", "sklearn", "matplotlib", "sqlalchemy", "tensorboard", "polars", "plotly"}
TRIAL = """
import emoreg.tuning.trainable
from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.training.context import TrialContext
from emoreg.training.trial import run_trial

digits = ImageSetConfig(name="digits", num_images=80)
stages = {{"pretraining": PretrainingConfig(epochs=1), "regulation": RegulationConfig(epochs=1)}}
trial = resolve_trial(TrialConfig(backbone="test_resnet", image_size=16, stimuli=digits, task=digits, **stages))
run_trial(trial, TrialContext.local(trial, storage={storage!r}))
"""


def imported(code: str) -> set[str]:
    """The modules that a process has after some code."""
    code += "\nimport sys; print('imported', *sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import emoreg", {*HEAVY, "pyarrow", "numpy", "rich", "tyro"}),
        (HELP, {*HEAVY, "pyarrow", "numpy", "rich"}),
        ("import emoreg.cli.parsing, emoreg.cli.commands, emoreg.cli.cluster, emoreg.cli.serve", HEAVY),
        ("import emoreg.tuning.private_ray", {*HEAVY, "rich", "tyro"}),
        ("import emoreg.tuning.study", {*COMPILER, "scipy", "sklearn", "matplotlib", "polars", "plotly"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, absent: set[str]) -> None:
    assert not absent & imported(code)


@pytest.mark.slow
def test_a_trial_needs_neither_the_compiler_nor_what_proposes_it(storage: Path) -> None:
    load(ImageSetConfig(name="digits"), image_size=16, storage=storage)  # whose reader imports scikit-learn
    absent = {*COMPILER, "optuna", "scipy", "sklearn", "matplotlib", "sqlalchemy", "polars"}
    assert not absent & imported(TRIAL.format(storage=str(storage)))
