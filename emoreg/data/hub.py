"""Image sets of the Hugging Face hub: fetched by its library `datasets`, which is the only module that knows it.

A path is hub://OWNER/NAME, hub://OWNER/NAME/CONFIGURATION for sets of several, with @REVISION at its end for one of the past.
What was prepared once is not looked up again: another revision is prepared where the path names it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from emoreg.errors import ImageSetError

SCHEME = "hub://"

_PATH = re.compile(r"hub://(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<configuration>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
_ROWS_AT_ONCE = 512


def check_hub(path: str) -> None:
    """Refuse a path that names no set of the hub, or one that cannot be fetched for want of the library.

    Raises:
        ImageSetError: saying which.
    """
    if _PATH.fullmatch(path) is None:
        raise ImageSetError(
            f"Write hub://OWNER/NAME, hub://OWNER/NAME/CONFIGURATION or hub://OWNER/NAME@REVISION: it is {path!r}"
        )
    if importlib.util.find_spec("datasets") is None:
        raise ImageSetError(f'Run pip install -e ".[hub]": {path!r} needs the library datasets, which is not installed')


def fetch(path: str, folder: Path) -> None:
    """Fetch a set of the hub, and write each of its splits to a Parquet file in ``folder``.

    Raises:
        ImageSetError: when it cannot be had.
    """
    import datasets

    asked = _PATH.fullmatch(path)
    assert asked is not None, "check_hub has seen it"
    try:
        splits = datasets.load_dataset(asked["name"], asked["configuration"], revision=asked["revision"])
    except Exception as error:  # the HTTP library's own too, which changes with the hub's version
        raise ImageSetError(
            f"Mend the network, or correct the name: {path!r} must be an image set of the hub, but it cannot be had from it "
            f"({type(error).__name__}: {error})"
        ) from error
    write_splits(splits, folder)


def write_splits(splits: Mapping[str, Any], folder: Path) -> None:
    """Write each split to a Parquet file of its name, with its images in it where the set has them as files."""
    from datasets.table import embed_table_storage

    folder.mkdir(parents=True)
    for name, split in splits.items():
        with pyarrow.parquet.ParquetWriter(folder / f"{name}.parquet", split.features.arrow_schema) as writer:
            for rows in split.with_format("arrow").iter(_ROWS_AT_ONCE):
                writer.write_table(embed_table_storage(rows))
