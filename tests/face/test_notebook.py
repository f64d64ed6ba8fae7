"""A notebook for real: a control registered in a cell, a study of seconds, its progress and its picture."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.waiting import PATIENCE

CELLS = [
    """\
import dataclasses
import emoreg
""",
    """\
@emoreg.control("halved")
def halved(trial):
    "Half the balance."
    return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, balance=0.25))
""",
    """\
digits = dict(name="digits", num_images=60)
study = emoreg.Study(
    "notebook",
    storage={storage!r},
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=8,
        stimuli=emoreg.ImageSetConfig(**digits, validation_fraction=0.0),
        task=emoreg.ImageSetConfig(**digits, split_seed=1),
        pretraining=emoreg.PretrainingConfig(epochs=1, batch_size=16),
        regulation=emoreg.RegulationConfig(epochs=1, batch_size=16),
    ),
    search_space={{"regulation.balance": emoreg.Float(0.05, 0.95)}},
    num_trials=1,
    controls=("regulated", "halved"),
)
study.run()
""",
    """\
assert {{row.control: row.balance for row in study.trials if row.role == "control"}} == {{"regulated": 0.5, "halved": 0.25}}
study
""",
]


@pytest.mark.slow
def test_a_notebook_runs_a_study_with_a_control_of_its_own(storage: Path, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.format(storage=str(storage)) if "{" in cell else cell) for cell in CELLS]
    )
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, ran, shown = notebook.cells
    text = "".join(output.data["text/plain"] for output in ran.outputs if output.output_type == "display_data")
    assert "3 trials: 3 finished" in text
    (picture,) = [output.data for output in shown.outputs if output.output_type == "execute_result"]
    assert picture["text/html"].startswith("<b>Study notebook</b>: 1 trial over regulation.balance")
    assert "best validation accuracy" in picture["text/html"]
    assert picture["text/plain"].startswith("Study('notebook', 1 trial over regulation.balance")
