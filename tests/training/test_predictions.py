"""What each image was taken for, beside the network of its trial."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import emoreg
from emoreg.data import load, parts
from emoreg.data.batches import Batches
from emoreg.results.predictions import Agreement, agreement, pictured_errors, pictured_right_by_one, read_predictions
from emoreg.results.records import PredictionRecord, schema
from emoreg.storage.files import Files
from emoreg.training.network import load_network
from tests.helpers.networks import copy_to, trained_study
from tests.helpers.trials import CPU, TINY, run, tiny

ENCODERS: tuple[Literal["plain"], Literal["emotional"]] = ("plain", "emotional")
pytestmark = pytest.mark.usefixtures("torch_threads")


def test_every_image_has_a_row_with_what_both_encoders_took_it_for(storage: Path) -> None:
    folder, record = trained_study(storage, tiny(regulation__epochs=1))
    study = emoreg.load_study(folder)
    frame = study.predictions_frame()
    assert frame is not None
    assert set(frame["split"]) == {"validation"}, "the test split stays shut"
    assert list(frame["image"]) == list(range(len(frame)))
    assert (frame["predicted"] == frame["class_name"]).mean() == record.val_accuracy
    study.export(storage / "exported")
    network = load_network(storage / "exported")
    _, validation = parts(load(TINY.task, image_size=16, storage=storage), TINY.task)
    ((images, targets),) = Batches(validation, device=CPU).evaluation()
    with torch.no_grad():
        response = network.regulation(images)
    assert list(frame["class_name"]) == [network.class_names[index] for index in targets]
    assert response.plain is not None
    for prefix, scores in (("", response.logits), ("plain_", response.plain), ("emotional_", response.emotional)):
        confidence, classes = scores.softmax(dim=1).max(dim=1)
        assert list(frame[f"{prefix}predicted"]) == [network.class_names[index] for index in classes]
        assert list(frame[f"{prefix}confidence"]) == pytest.approx(confidence.tolist(), abs=1e-6)
    card = (storage / "exported" / "README.md").read_text()
    share = (frame["plain_predicted"] == frame["emotional_predicted"]).mean()
    assert f"agree on {100 * share:.1f} % of {len(frame)} images" in card


def test_the_test_split_is_in_it_once_it_was_opened_and_a_lone_encoder_has_no_other(storage: Path) -> None:
    config = tiny(regulation__epochs=1, regulation__balance=0.0)
    outcome, _, _ = run(config, storage, folder=storage / "one" / "trials" / "abc", evaluate_on="test")
    table = read_predictions(Files(str(storage / "one")), identity="abc")
    assert table is not None
    assert set(table["split"].to_pylist()) == {"validation", "test"}
    assert table["emotional_predicted"].null_count == len(table)
    assert table["plain_predicted"].to_pylist() == table["predicted"].to_pylist()
    assert agreement(table, "test") is None
    rows = duckdb.sql(
        f"select avg((predicted = class_name)::int) from '{storage}/one/trials/*/predictions.parquet' where split = 'test'"
    ).fetchall()
    assert rows == [(pytest.approx(outcome.test_accuracy),)]


def test_they_are_read_from_an_object_store_too(bucket: str, storage: Path) -> None:
    folder, record = trained_study(storage, tiny(regulation__epochs=1))
    frame = emoreg.load_study(copy_to(bucket, folder)).predictions_frame()
    assert frame is not None
    assert set(frame["identity"]) == {record.identity}


def test_a_study_without_any_says_so(storage: Path) -> None:
    folder, record = trained_study(storage, tiny(regulation__epochs=1))
    (folder / "trials" / record.identity / "predictions.parquet").unlink()
    assert emoreg.load_study(folder).predictions_frame() is None


def test_agreement_by_hand() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"), ("b", "c")]  # by the plain and the emotional one; all are a
    rows = [
        {
            "identity": "abc", "split": "test", "image": image, "class_name": "a", "predicted": plain, "confidence": 0.5,
            "plain_predicted": plain, "plain_confidence": 0.5, "emotional_predicted": emotional, "emotional_confidence": 0.5,
        }
        for image, (plain, emotional) in enumerate(pairs)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=schema(PredictionRecord))
    expected = Agreement(num_images=5, agree=0.4, both=0.2, only_plain=0.2, only_emotional=0.2)
    assert agreement(table, "test") == expected
    assert agreement(table, "validation") is None


def test_errors_and_what_one_encoder_alone_gets_right_have_pictures(storage: Path) -> None:
    folder, record = trained_study(storage, tiny(regulation__epochs=1))
    table = read_predictions(Files(str(folder)), identity=record.identity)
    assert table is not None
    errors = pictured_errors(table, "validation")
    wrong = sorted(
        (row for row in table.to_pylist() if row["predicted"] != row["class_name"]), key=lambda row: -row["confidence"]
    )
    assert errors["image"].to_pylist()[:12] == [row["image"] for row in wrong[:12]], "the most confident come first"
    _, validation = parts(load(TINY.task, image_size=16, storage=storage), TINY.task)
    for rows in (errors, *(pictured_right_by_one(table, "validation", one) for one in ENCODERS)):
        for row in rows.to_pylist():
            pixels = np.asarray(Image.open(io.BytesIO(row["picture"])))
            assert (pixels == validation.images[row["image"]]).all()
    for encoder, other in zip(ENCODERS, reversed(ENCODERS), strict=True):
        alone = pictured_right_by_one(table, "validation", encoder)
        assert alone[f"{encoder}_predicted"].to_pylist() == alone["class_name"].to_pylist()
        assert all(alone[f"{other}_predicted"].to_numpy() != alone["class_name"].to_numpy())
