"""What each image of a split was taken for, written beside the trial's network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from emoreg.results.predictions import PREDICTIONS
from emoreg.results.records import PredictionRecord, schema
from emoreg.results.tables import write_table
from emoreg.training.learners import Evaluation


def write_predictions(folder: Path, identity: str, evaluations: Mapping[str, Evaluation], class_names: Sequence[str]) -> None:
    """Write the predictions of a trial's evaluations, by split, into its folder.

    Raises:
        OSError: where that fails; what was written before stays whole.
    """
    columns = schema(PredictionRecord)
    tables = [
        pa.table(dict(_columns(evaluation, class_names)), schema=columns.remove(0).remove(0))
        .add_column(0, columns[1], pa.array([split] * len(evaluation.targets)))
        .add_column(0, columns[0], pa.array([identity] * len(evaluation.targets)))
        for split, evaluation in evaluations.items()
    ]
    write_table(folder / PREDICTIONS, pa.concat_tables(tables).replace_schema_metadata(columns.metadata))


def _columns(evaluation: Evaluation, class_names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    num_images = len(evaluation.targets)
    yield "image", range(num_images)
    yield "class_name", [class_names[index] for index in evaluation.targets.tolist()]
    by_encoder = {"": evaluation.prediction, "plain_": evaluation.plain, "emotional_": evaluation.emotional}
    for prefix, prediction in by_encoder.items():
        if prediction is None:
            yield f"{prefix}predicted", [None] * num_images
            yield f"{prefix}confidence", [None] * num_images
        else:
            yield f"{prefix}predicted", [class_names[index] for index in prediction.classes.tolist()]
            yield f"{prefix}confidence", prediction.confidence.tolist()
