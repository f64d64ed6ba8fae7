"""FER2013 (Goodfellow et al. 2013): 48x48 grey faces with seven expressions, in each of the forms that it is passed on in.

Training is the official training split (28,709), test the official private test (3,589). The official public test is left
out, so that numbers compare with published ones; validation is cut from the training split. The set has near a thousand
exact doubles, about 290 of them between training and test: the summary counts those.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import UInt8

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, files
from emoreg.data.readers import folder, parquet
from emoreg.errors import ImageSetError

CLASS_NAMES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_CSV_CODES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_SIDE = 48


def read(request: ImageSetRequest) -> ImageSetContents:
    """From the official table of pixels, Parquet, or Kaggle's tree of class folders."""
    if request.local is not None:
        for table in (request.local, *(request.local / name for name in _CSV_NAMES)):
            if table.is_file() and table.suffix == ".csv":
                return _read_table(table)
    shards = parquet.find_splits(request, "fer2013")
    return parquet.labelled(shards, "label") if shards else folder.read(request)


def _read_table(path: Path) -> ImageSetContents:
    usages: dict[str, list[Item]] = {"Training": [], "PublicTest": [], "PrivateTest": []}
    row = 0
    with pa.csv.open_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=False)) as reader:
        for batch in reader:
            # Some copies have blanks around the columns' names.
            columns = {name.strip(): column for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            if not {"emotion", "pixels", "Usage"} <= set(columns):
                raise ImageSetError(
                    f"Fetch the original of FER2013: its table must have the columns emotion, pixels and Usage, but {path} has "
                    f"{list(columns)}"
                )
            values = (columns[name].to_pylist() for name in ("emotion", "pixels", "Usage"))
            for emotion, pixels, usage in zip(*values, strict=True):
                row += 1
                target = CLASS_NAMES.index(_CSV_CODES[emotion]) if 0 <= emotion < len(_CSV_CODES) else -1
                if usage in usages:
                    usages[usage].append(Item(_pixels(pixels), target, f"{path.name} row {row}"))
    return ImageSetContents(
        class_names=CLASS_NAMES,
        train=usages["Training"],
        test=usages["PrivateTest"],
        notes={"left out: public test": len(usages["PublicTest"])},
    )


def _pixels(text: str) -> UInt8[np.ndarray, "48 48"] | None:
    """The grey values of a row, None where they are not 48 * 48."""
    try:
        values = np.frombuffer(bytes(map(int, text.split())), np.uint8)
    except ValueError:
        return None
    return values.reshape(_SIDE, _SIDE) if len(values) == _SIDE * _SIDE else None


IMAGE_SETS.add(
    "fer2013",
    Reader(
        kind="stimuli",
        description="FER2013: 28,709 + 3,589 grey faces, 48x48, seven expressions",
        source="Kaggle: msambare/fer2013, or the ICML 2013 challenge",
        layout="a folder with fer2013.csv, or train/<class>/* and test/<class>/*, or fer2013*train*.parquet and "
        "fer2013*test*.parquet",
        licence="none stated; faces from the web, for research",
        path="required",
        targets=("expression",),
        stamp=files("fer2013*", *_CSV_NAMES, *parquet.SPLIT_FILES),
        read=read,
    ),
)
