"""What each image was taken for, by both encoders: beside a trial's network, and kept as long as that. Needs no torch.

``trials/<identity>/predictions.parquet`` has one row an image of a split that the trial was evaluated on, at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from emoreg.results.tables import read_table
from emoreg.storage.files import Files

PREDICTIONS = "predictions.parquet"
"""Name of the file in a trial's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far two encoders go together on a split, in shares of its images.

    Attributes:
        num_images: of the split.
        agree: same prediction.
        both: both right.
        only_plain: the plain one alone right.
        only_emotional: the emotional one alone right.
    """

    num_images: int
    agree: float
    both: float
    only_plain: float
    only_emotional: float


def read_predictions(*studies: Files, identity: str = "") -> pa.Table | None:
    """The predictions of a trial, or of every trial that has some, of the studies in these folders; None where there are none.

    Raises:
        StorageError: for a file that is damaged, or of another emoreg.
        OSError: where the storage does not answer.
    """
    folder = f"trials/{identity}" if identity else "trials"
    tables = [
        read_table(pa.BufferReader(files.read(found.name)), f"{found.name} of {files.uri!r}")
        for files in studies
        for found in files.find(folder)
        if found.name.endswith(f"/{PREDICTIONS}")
    ]
    return pa.concat_tables(tables, promote_options="default") if tables else None  # older ones have no pictures


def agreement(predictions: pa.Table, split: str) -> Agreement | None:
    """How far the encoders of a trial go together on a split; None where it has but one, or was not evaluated there."""
    rows = predictions.filter(pc.equal(predictions["split"], split))
    plain, emotional, truth = (rows[name] for name in ("plain_predicted", "emotional_predicted", "class_name"))
    if not len(rows) or plain.null_count or emotional.null_count:
        return None
    right = pc.equal(plain, truth), pc.equal(emotional, truth)
    return Agreement(
        num_images=len(rows),
        agree=_share(pc.equal(plain, emotional)),
        both=_share(pc.and_(*right)),
        only_plain=_share(pc.and_not(*right)),
        only_emotional=_share(pc.and_not(*reversed(right))),
    )


def pictured_errors(predictions: pa.Table, split: str) -> pa.Table:
    """The rows of a split whose prediction is wrong and that have a picture, the most confident first."""
    wrong = pc.not_equal(predictions["predicted"], predictions["class_name"])
    return _pictured(predictions, split, wrong, "confidence")


def pictured_right_by_one(predictions: pa.Table, split: str, encoder: Literal["plain", "emotional"]) -> pa.Table:
    """The rows of a split that one encoder alone takes for what they are and that have a picture, its most confident first."""
    other = "emotional" if encoder == "plain" else "plain"
    right, other_right = (pc.equal(predictions[f"{name}_predicted"], predictions["class_name"]) for name in (encoder, other))
    return _pictured(predictions, split, pc.and_not(right, other_right), f"{encoder}_confidence")


def _pictured(predictions: pa.Table, split: str, flags: pa.ChunkedArray, confidence: str) -> pa.Table:
    wanted = pc.and_(flags, pc.and_(pc.equal(predictions["split"], split), pc.is_valid(predictions["picture"])))
    return predictions.filter(wanted).sort_by([(confidence, "descending"), ("image", "ascending")])


def _share(flags: pa.ChunkedArray) -> float:
    share: float = pc.mean(flags.cast(pa.int8())).as_py()
    return share
