"""What each image of a split was taken for, written beside the trial's network.

Legend: N images of a split, C classes, B images that are worth a look.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from emoreg.data.batches import Batches
from emoreg.results.predictions import PREDICTIONS
from emoreg.results.records import PredictionRecord, schema
from emoreg.results.tables import write_table
from emoreg.training.learners import Evaluation

_NUM_PICTURES = 12
"""Of errors, and of what each encoder alone gets right."""
_SIDE = 96
"""Of a picture in pixels, at most."""


def write_predictions(
    folder: Path,
    identity: str,
    evaluations: Mapping[str, Evaluation],
    images: Mapping[str, Batches],
    class_names: Sequence[str],
) -> None:
    """Write the predictions of a trial's evaluations, by split, into its folder, with pictures of what is worth a look.

    Raises:
        OSError: where that fails; what was written before stays whole.
    """
    columns = schema(PredictionRecord)
    tables = [
        pa.table(
            {"identity": [identity] * len(found.targets), "split": [split] * len(found.targets)}
            | dict(_columns(found, class_names))
            | {"picture": _pictures(found, images[split])},
            schema=columns,
        )
        for split, found in evaluations.items()
    ]
    write_table(folder / PREDICTIONS, pa.concat_tables(tables))


def _columns(evaluation: Evaluation, class_names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    num_images = len(evaluation.targets)
    yield "image", range(num_images)
    yield "class_name", [class_names[index] for index in evaluation.targets.tolist()]
    by_encoder = {"": evaluation.scores, "plain_": evaluation.plain, "emotional_": evaluation.emotional}
    for prefix, scores in by_encoder.items():
        if scores is None:
            yield f"{prefix}predicted", [None] * num_images
            yield f"{prefix}confidence", [None] * num_images
        else:
            confidence, classes = _most_probable(scores)
            yield f"{prefix}predicted", [class_names[index] for index in classes.tolist()]
            yield f"{prefix}confidence", confidence.tolist()


def _most_probable(scores: Float[Tensor, "N C"]) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """The probability of the most probable class of each image, and the class."""
    confidence, classes = scores.softmax(dim=1).max(dim=1)
    return confidence, classes


def _pictures(evaluation: Evaluation, images: Batches) -> list[bytes | None]:
    """A PNG of each image that is worth a look."""
    pictures: list[bytes | None] = [None] * len(evaluation.targets)
    places = torch.cat([*_worth_a_look(evaluation)]).unique()
    for place, pixels in zip(places.tolist(), images.pictures(places).numpy(), strict=True):
        picture, stream = Image.fromarray(pixels), io.BytesIO()
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(stream, "PNG")
        pictures[place] = stream.getvalue()
    return pictures


def _worth_a_look(evaluation: Evaluation) -> Iterator[Int[Tensor, " B"]]:
    """The most confident errors, and of each encoder the most confident of those that it alone gets right."""
    confidence, classes = _most_probable(evaluation.scores)
    yield _most_confident(classes != evaluation.targets, confidence)
    if evaluation.plain is not None and evaluation.emotional is not None:
        encoders = [_most_probable(scores) for scores in (evaluation.plain, evaluation.emotional)]
        right = [classes == evaluation.targets for _, classes in encoders]
        for (confidence, _), is_right in zip(encoders, right, strict=True):
            yield _most_confident(is_right & (right[0] != right[1]), confidence)


def _most_confident(flags: Tensor, confidence: Tensor) -> Int[Tensor, " B"]:
    places = flags.nonzero().flatten()
    return places[confidence[places].argsort(descending=True, stable=True)[:_NUM_PICTURES]]
