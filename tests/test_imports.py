"""What a process imports before it is asked for: every second of it is paid by each command, each worker, each study."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import emoreg
from emoreg.config import ImageSetConfig
from emoreg.data import load

HELP = """
import contextlib, io
from emoreg.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(['--help'])
"""
NAMES = "\n".join(f"from emoreg import {name}" for name in reversed(emoreg.__all__))
"""Each can be imported before those that are told before it."""
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
ENGINE = {*COMPILER, "scipy", "sklearn", "matplotlib", "polars", "plotly"}
"""What neither the names of ``import emoreg`` nor what runs a study needs."""
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


def imported(*stages: str) -> list[set[str]]:
    """The modules that a process has after each of several pieces of code, which print nothing."""
    code = "".join(f"{stage}\nimport sys; print(*sys.modules)\n" for stage in stages)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "stages",
    [
        {
            "import emoreg": {*HEAVY, "pyarrow", "numpy", "rich", "tyro"},
            HELP: {*HEAVY, "pyarrow", "numpy", "rich"},
            "import emoreg.cli.parsing, emoreg.cli.commands, emoreg.cli.cluster, emoreg.cli.serve": HEAVY,
        },
        {"import emoreg.tuning.private_ray": {*HEAVY, "rich", "tyro"}},
        {NAMES: ENGINE, "import emoreg.tuning.study": ENGINE},
    ],
    ids=["command line", "private Ray", "engine"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(stages: dict[str, set[str]]) -> None:
    for (code, absent), found in zip(stages.items(), imported(*stages), strict=True):
        assert not absent & found, code


@pytest.mark.slow
def test_a_trial_needs_neither_the_compiler_nor_what_proposes_it(storage: Path) -> None:
    load(ImageSetConfig(name="digits"), image_size=16, storage=storage)  # whose reader imports scikit-learn
    absent = {*COMPILER, "optuna", "scipy", "sklearn", "matplotlib", "sqlalchemy", "polars"}
    (found,) = imported(TRIAL.format(storage=str(storage)))
    assert not absent & found
