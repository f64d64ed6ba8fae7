"""The columns of Parquet files: which holds the images, which the labels, and what stands in their cells.

A cell of an image column holds an encoded image (bytes, or Hugging Face's struct of `bytes` and `path`), or pixels from 0 to
255: nested lists or a fixed-shape tensor of [H, W], [H, W, C] or [C, H, W], a flat list or a text of S * S grey values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from emoreg.data.decode import Picture, Refused
from emoreg.errors import ImageSetError

_IMAGE_COLUMNS = ("image", "img")
_PIXELS = "pixels"
_LABEL = "label"
_LABEL_COLUMNS = (_LABEL, "labels", "emotion", "expression", "class", "fine_label")
"""Label columns, the first that there is, where the target is the default."""
_UNDERSTOOD = (
    "bytes of encoded images, Hugging Face's struct of bytes and path, lists of whole numbers, or a fixed-shape tensor"
)


def image_column(schema: pa.Schema, wanted: str | None, file: str) -> str:
    """The column of the images: the one that is wanted, else ``image`` or ``img``, else the one of bytes, else of pixels.

    Raises:
        ImageSetError: where there is none or several, or the one that is wanted holds no images.
    """
    encoded = [field.name for field in schema if _holds_bytes(field.type)]
    drawn = [field.name for field in schema if _holds_pixels(field.type) or (field.name == _PIXELS and _is_text(field.type))]
    choices: list[str]
    if wanted is not None:
        texts = [field.name for field in schema if _is_text(field.type)]
        choices = [name for name in (*encoded, *drawn, *texts) if name == wanted]
    else:
        choices = [name for name in _IMAGE_COLUMNS if name in (*encoded, *drawn)][:1] or encoded or drawn
    if len(choices) == 1:
        return choices[0]
    raise ImageSetError(
        f"Name the column of the images as image_column (--image-column), one of {[*encoded, *drawn]}: it must hold "
        f"{_UNDERSTOOD}, but "
        f"{file} has the columns {_described(schema)}"
    )


def label_column(schema: pa.Schema, target: str, file: str) -> str:
    """The column that the target names; for ``label``, else the first of its usual other names, or the one ``ClassLabel``.

    Raises:
        ImageSetError: where there is none.
    """
    found = label_column_or_none(schema, target)
    if found is None:
        raise ImageSetError(
            f"Name the column of the labels as the image set's target (--target): there must be a column {target!r}, but "
            f"{file} has the columns {_described(schema)}"
        )
    return found


def label_column_or_none(schema: pa.Schema, target: str) -> str | None:
    """As ``label_column``, None where there is none."""
    usual = _LABEL_COLUMNS if target == _LABEL else (target,)
    found = next((name for name in usual if name in schema.names), None)
    if found is None and target == _LABEL:
        declared = [name for name in schema.names if _hub_names(schema, name) is not None]
        found = declared[0] if len(declared) == 1 else None
    return found


def declared_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the classes that a file declares: `class_names` in its metadata, or Hugging Face's ``ClassLabel``.

    Raises:
        ImageSetError: where `class_names` is no list of names.
    """
    if label == _LABEL and b"class_names" in (schema.metadata or {}):
        text = schema.metadata[b"class_names"].decode(errors="replace")
        names = _names(_parsed(text))
        if names is None:
            raise ImageSetError(
                f"Write class_names as a JSON list of names: the metadata of the Parquet files have {text[:60]!r}"
            )
        return names
    return _hub_names(schema, label)


def _hub_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """What Hugging Face's metadata say of a column, as far as they are what they should be."""
    content = _parsed((schema.metadata or {}).get(b"huggingface", b"").decode(errors="replace"))
    for key in ("info", "features", label):
        content = content.get(key) if isinstance(content, Mapping) else None
    return _names(content.get("names")) if isinstance(content, Mapping) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and value and all(isinstance(name, str) for name in value) else None


def is_label_type(label_type: pa.DataType) -> bool:
    """Whether values of a column's type can be labels: whole numbers, texts, booleans."""
    types = pa.types
    return types.is_integer(label_type) or _is_text(label_type) or types.is_boolean(label_type)


def pictures(column: pa.Array) -> Iterator[Picture | Refused | None]:
    """The images of an image column's cells; None for a cell that holds none, a refusal for one that tells where it was."""
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        for pixels in column.storage.to_pylist():
            yield None if pixels is None else _pixels(np.array(pixels).reshape(kind.shape))
        return
    if isinstance(kind, pa.BaseExtensionType):
        column = column.storage
    for cell in column.to_pylist():
        if isinstance(cell, dict):
            is_elsewhere = cell["bytes"] is None and cell.get("path")
            yield Refused(f"no bytes, only the path {cell['path']!r}") if is_elsewhere else cell["bytes"]
        elif isinstance(cell, list):
            yield _pixels_of_list(cell)
        else:
            yield grey_square(cell) if isinstance(cell, str) else cell


def grey_square(text: str) -> np.ndarray | None:
    """The S * S grey values of a text as a picture [S, S]; None where there are no such values."""
    try:
        return _pixels(np.frombuffer(bytes(map(int, text.split())), np.uint8))
    except ValueError:
        return None


def _pixels_of_list(cell: list[Any]) -> np.ndarray | None:
    try:
        return _pixels(np.array(cell))
    except ValueError:  # rows of unequal length
        return None


def _pixels(values: np.ndarray) -> np.ndarray:
    """Pixels [S * S], [H, W], [H, W, C] or [C, H, W] as uint8 [H, W] or [H, W, C]; what is none is left as it is."""
    if values.dtype.kind not in "iu" or values.size == 0 or not 0 <= values.min() <= values.max() <= 255:
        return values
    values = values.astype(np.uint8)
    side = math.isqrt(len(values))
    if values.ndim == 1 and side * side == len(values):
        return values.reshape(side, side)
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return np.ascontiguousarray(values)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _holds_pixels(kind: pa.DataType) -> bool:
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return types.is_integer(kind.value_type) and kind.permutation in (None, [0, 1], [0, 1, 2])
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_pixels(kind.storage_type)
    is_list = False
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, is_list = kind.value_type, True
    return is_list and types.is_integer(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
