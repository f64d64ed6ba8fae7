"""What a report says of single images and classes."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from emoreg.report import write_report
from emoreg.report.per_image import agreement_table, draw_by_class, pictures, read_kept
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.results.predictions import PREDICTIONS
from emoreg.results.records import EvaluationRecord, PredictionRecord, TrialRecord, schema
from emoreg.results.study import StudyResults, load_results
from emoreg.results.tables import write_table
from tests.helpers.written import made_up_config, write_rows, write_study

CONFIG = made_up_config(num_trials=8)
BOTH, PLAIN, EMOTIONAL, NEITHER = ("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")
"""What the plain and the emotional encoder take an image of class a for."""


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(stream, "PNG")
    return stream.getvalue()


def write_predictions(folder: Path, identity: str, split: str, answers: list[tuple[str, str]]) -> None:
    """Those of images of class a, which the trial takes for what the plain encoder does; the first has the least confidence."""
    rows = [
        {
            "identity": identity, "split": split, "image": place, "class_name": "a",
            "predicted": plain, "confidence": place / 10, "plain_predicted": plain, "plain_confidence": 0.5,
            "emotional_predicted": emotional, "emotional_confidence": 0.6,
            "picture": png() if (plain, emotional) != BOTH else None,
        }
        for place, (plain, emotional) in enumerate(answers)
    ]  # fmt: skip
    path = folder / "trials" / identity / PREDICTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.Table.from_pylist(rows, schema=schema(PredictionRecord)))


def evaluated(identity: str, split: str, correct: dict[str, int]) -> list[EvaluationRecord]:
    """Each class has ten images, of which so many are recognised."""
    return [
        EvaluationRecord(identity=identity, split=split, class_name=name, num_images=10, num_predicted=10, num_correct=count)
        for name, count in correct.items()
    ]


def best(study: StudyResults) -> TrialRecord:
    return next(iter(study.best.values()))


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """A study whose best trial has kept its predictions, and whose evaluations are recorded."""
    folder = write_study(tmp_path, CONFIG, num_seeds=0)
    study = load_results(folder)
    write_predictions(folder, best(study).identity, "validation", [BOTH, BOTH, PLAIN, EMOTIONAL, NEITHER])
    rows = evaluated(best(study).identity, "validation", {"a": 9, "b": 2})
    for row in study.trials:
        if row.control == "plain" and row.backbone == best(study).backbone:
            rows += evaluated(row.identity, "validation", {"a": 4, "b": 2 + row.seed})
    write_rows(folder, "evaluations", EvaluationRecord, rows)
    return folder


def test_encoders_are_compared_and_pictures_shown_of_the_best_trial(searched: Path) -> None:
    study = load_results(searched)
    kept, lost = read_kept(study)
    assert not lost
    table = agreement_table(study, kept)
    assert table is not None
    [[name, split, number, *shares]] = [row for _, rows in table.bodies() for row in rows]
    assert (name.text, split.text, number.text) == (best(study).backbone, "validation", "5")
    assert [cell.text for cell in shares] == ["60.0", "40.0", "20.0", "20.0", "20.0"]
    errors, emotional, plain = pictures(study, kept)
    assert [caption for _, caption in errors.tiles] == ["a, taken for b (40 %)", "a, taken for b (30 %)"]
    assert [caption for _, caption in emotional.tiles] == ["a (60 %)"]
    assert [caption for _, caption in plain.tiles] == ["a (50 %)"]
    page = write_report([searched], images=False).read_text()
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert [b64decode(source) for source in sources if b64decode(source) == png()] == [png()] * 4
    assert "Image by image" in page


def test_classes_stand_in_the_order_of_what_regulation_gains(searched: Path) -> None:
    figure, caption = draw_by_class(FigureContext(study=load_results(searched)))
    plain, regulated = figure.data
    assert list(regulated.y) == list(plain.y) == ["b", "a"]
    assert list(regulated.x) == [20.0, 90.0]
    assert list(plain.x) == [30.0, 40.0], "means over the seeds 0, 1 and 2"
    assert "selected on these very images, n = 1, over plain of n = 3" in caption


def test_a_whole_confirmation_is_shown_on_the_test_split_and_an_unfinished_one_not(tmp_path: Path) -> None:
    folder = write_study(tmp_path, CONFIG, num_seeds=3)
    study = load_results(folder)
    assert study.opening is not None
    assert study.confirmation is not None
    assert study.confirmation.folder is not None
    chosen = study.opening.chosen[0]
    for trial in study.opening.trials:
        if (trial.chosen, trial.control) == (chosen.identity, "regulated"):
            answers = [BOTH, PLAIN] if trial.seed % 2 else [BOTH, BOTH]
            write_predictions(study.confirmation.folder, trial.identity, "test", answers)
    kept, _ = read_kept(study)
    table = agreement_table(study, kept)
    assert table is not None
    [[_, split, _, agree, *_]] = [row for _, rows in table.bodies() for row in rows]
    assert (split.text, agree.text, agree.n) == ("test", "83.3", 3)
    write_rows(study.confirmation.folder, "trials", TrialRecord, study.confirmation.trials[1:])
    kept, _ = read_kept(load_results(folder))
    assert not kept, "what the test split says stays hidden until all trials of the confirmation have ended"


def test_what_is_not_there_or_damaged_is_said(searched: Path) -> None:
    study = load_results(searched)
    path = searched / "trials" / best(study).identity / PREDICTIONS
    path.write_bytes(path.read_bytes()[:-9])
    page = write_report([searched], images=False).read_text()
    assert "Without it nothing is said of this trial&#39;s single images" in page
    (searched / "records" / "evaluations.parquet").unlink()
    with pytest.raises(NotDrawn, match="no accuracy by class"):
        draw_by_class(FigureContext(study=load_results(searched)))
