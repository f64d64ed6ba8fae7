"""FER2013 (Goodfellow et al. 2013): 48x48 grey faces with seven expressions, in each of the forms that it is passed on in.

Training is the official training split (28,709), test the official private test (3,589). The official public test is left
out, so that numbers compare with published ones; validation is cut from the training split. The set has near a thousand
exact doubles, about 290 of them between training and test: the summary counts those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from PIL import Image

from emoreg.data.readers import folder, parquet
from emoreg.data.readers.contents import Contents, Item, Request
from emoreg.errors import ImageSetError

CLASS_NAMES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_CSV_CODES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_SIDE = 48


def stamp(request: Request) -> list[str]:
    """Name, size and time of change of every file that is read."""
    csv = _csv(request)
    if csv is not None:
        return [f"{csv.name} {csv.stat().st_size} {csv.stat().st_mtime_ns}"]
    shards = _shards(request)
    return parquet.stamp_of(shards) if shards else folder.stamp(request)


def read(request: Request) -> Contents:
    """From the official table of pixels, Parquet, or Kaggle's tree of class folders."""
    csv = _csv(request)
    if csv is not None:
        return _read_csv(csv)
    shards = _shards(request)
    return parquet.labelled(shards, "label") if shards else folder.read(request)


def _csv(request: Request) -> Path | None:
    assert request.path is not None
    if "://" in request.path:
        return None
    path = Path(request.path).expanduser()
    return next(
        (file for file in (path, *(path / name for name in _CSV_NAMES)) if file.is_file() and file.suffix == ".csv"), None
    )


def _shards(request: Request) -> dict[str, parquet.Shards]:
    assert request.path is not None
    return parquet.find_splits(request.path, "fer2013")


def _batches(csv: Path) -> Iterator[dict[str, Any]]:
    """The table's columns, a block of rows at a time. Some copies have blanks around the columns' names."""
    with pa.csv.open_csv(csv, convert_options=pa.csv.ConvertOptions(strings_can_be_null=False)) as reader:
        for batch in reader:
            columns = {name.strip(): column for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            if not {"emotion", "pixels", "Usage"} <= set(columns):
                raise ImageSetError(
                    f"FER2013's table must have the columns emotion, pixels and Usage, but {csv} has {list(columns)}: "
                    "fetch the original"
                )
            yield columns


def _read_csv(csv: Path) -> Contents:
    usages = [usage for batch in _batches(csv) for usage in batch["Usage"].to_pylist()]

    def items(split: str) -> Iterator[Item]:
        row = 0
        for batch in _batches(csv):
            for emotion, pixels, usage in zip(
                *(batch[name].to_pylist() for name in ("emotion", "pixels", "Usage")), strict=True
            ):
                row += 1
                if usage == split:
                    target = CLASS_NAMES.index(_CSV_CODES[emotion]) if 0 <= emotion < len(_CSV_CODES) else -1
                    yield Item(f"{csv.name} row {row}", _picture(pixels), target)

    return Contents(
        class_names=CLASS_NAMES,
        train=items("Training"),
        num_train=usages.count("Training"),
        test=items("PrivateTest"),
        num_test=usages.count("PrivateTest"),
        notes={"left out: public test": usages.count("PublicTest")},
    )


def _picture(pixels: str) -> Image.Image | None:
    """The picture of a row of grey values, None for a row that has not 48 * 48 of them."""
    try:
        values = bytes(map(int, pixels.split()))
    except ValueError:
        return None
    return Image.frombytes("L", (_SIDE, _SIDE), values) if len(values) == _SIDE * _SIDE else None
