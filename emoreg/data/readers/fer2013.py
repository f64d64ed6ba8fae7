"""FER2013 (Goodfellow et al. 2013): 48x48 grey faces with seven expressions, in each of the forms that it is passed on in.

Training is the official training split (28,709), test the official private test (3,589). The official public test is left
out, so that numbers compare with published ones; validation is cut from the training split. The set has near a thousand
exact doubles, about 290 of them between training and test: the summary counts those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import UInt8

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.layout import find_below, stamp_of
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader
from emoreg.data.readers import folder, parquet, shards
from emoreg.data.readers.columns import grey_square
from emoreg.errors import ImageSetError

CLASS_NAMES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_CSV_CODES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_SIDE = 48


def stamp(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file that may be read."""
    tables = _tables(request)
    if tables:
        return stamp_of(tables.values(), next(iter(tables.values())).parent)
    return shards.stamp(request, "fer2013") or folder.stamp(request)


def read(request: ImageSetRequest) -> ImageSetContents:
    """From tables of pixels (the official one, or one a split), Parquet, or Kaggle's tree of class folders."""
    tables = _tables(request)
    if tables:
        return _read_tables(tables)
    files = shards.find_splits(request, "fer2013")
    return folder.read(request) if files is None else parquet.labelled(files, request, "label")


def _tables(request: ImageSetRequest) -> dict[str, Path]:
    """The tables of pixels at the path, or below it: the official one as "train", or one a split."""
    if request.local is None:
        return {}
    if request.local.suffix.lower() == ".csv":
        return {"train": request.local}
    official = find_below(request.local, *_CSV_NAMES)
    if official is not None:
        return {"train": official}
    train = find_below(request.local, "train.csv")
    if train is None or "pixels" not in _columns(train):
        return {}
    test = find_below(train.parent, "test.csv", depth=0)
    return {"train": train} if test is None else {"train": train, "test": test}


def _columns(table: Path) -> list[str]:
    """The names of a table's columns; some copies have blanks around them."""
    with open(table, encoding="utf-8-sig", errors="replace") as stream:
        return [name.strip() for name in stream.readline().split(",")]


def _read_tables(tables: Mapping[str, Path]) -> ImageSetContents:
    rows = {split: _rows(table) for split, table in tables.items()}
    train, test = rows["train"]["Training"], rows["train"].get("PrivateTest")
    notes = Counter({"left out: public test": len(rows["train"].get("PublicTest", []))})
    origins = {"train": tables["train"].name, "test": f"{tables['train'].name}, PrivateTest"}
    if test is None and "test" in tables:
        test, origins["test"] = rows["test"]["Training"], tables["test"].name
        if all(item.target is None for item in test):
            notes[f"left out: no labels in {tables['test'].name}"] = len(test)
            test = None
    if test is None:
        del origins["test"]
    return ImageSetContents(class_names=CLASS_NAMES, train=train, test=test, notes=notes, origins=origins)


def _rows(table: Path) -> dict[str, list[Item]]:
    """The rows of a table by their usage; all are for training where it tells none, and unlabelled where it has no emotion."""
    if "pixels" not in _columns(table):
        raise ImageSetError(
            f"Fetch the original of FER2013: its table must have the columns emotion, pixels and Usage, but {table} has "
            f"{_columns(table)}"
        )
    usages: dict[str, list[Item]] = {"Training": []}
    row = 0
    with pa.csv.open_csv(table, convert_options=pa.csv.ConvertOptions(strings_can_be_null=False)) as reader:
        for batch in reader:
            columns = {name.strip(): column.to_pylist() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            emotions = columns.get("emotion", [None] * len(batch))
            used = columns.get("Usage", ["Training"] * len(batch))
            for emotion, pixels, usage in zip(emotions, columns["pixels"], used, strict=True):
                row += 1
                usages.setdefault(usage, []).append(Item(_pixels(pixels), _target(emotion), f"{table.name} row {row}"))
    return usages


def _target(emotion: int | None) -> int | None:
    if emotion is None:
        return None
    return CLASS_NAMES.index(_CSV_CODES[emotion]) if 0 <= emotion < len(_CSV_CODES) else -1


def _pixels(text: str) -> UInt8[np.ndarray, "48 48"] | None:
    """The grey values of a row, None where they are not 48 * 48."""
    pixels = grey_square(text)
    return pixels if pixels is not None and pixels.shape == (_SIDE, _SIDE) else None


IMAGE_SETS.add(
    "fer2013",
    Reader(
        kind="stimuli",
        description="FER2013: 28,709 + 3,589 grey faces, 48x48, seven expressions",
        source="Kaggle: msambare/fer2013, or the ICML 2013 challenge",
        layout="a folder with fer2013.csv, its parent or its archive, train.csv and test.csv, train/<class>/* and "
        "test/<class>/*, or fer2013*train*.parquet and fer2013*test*.parquet",
        licence="none stated; faces from the web, for research",
        path="required",
        targets=("expression",),
        has_columns=True,
        groups="a column, in Parquet; levels of folders, in a tree",
        stamp=stamp,
        read=read,
    ),
)
