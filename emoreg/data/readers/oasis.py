"""OASIS (Kurdi, Lozano & Banaji 2017): scenes with the mean valence and arousal that raters gave them, 1 to 7.

Targets: `valence` and `arousal` are tertiles (a third of the training images each); `regression` is the pair of ratings,
standardised with the training split's mean and deviation.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.layout import entries, find_below, stamp_of
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, held_out
from emoreg.data.readers import parquet, shards
from emoreg.errors import ImageSetError

_TABLE = "OASIS.csv"
_CLASS_NAMES = {"valence": ("negative", "neutral", "positive"), "arousal": ("calm", "moderate", "aroused")}


def stamp(request: ImageSetRequest) -> list[str]:
    """Name, size and time of change of every file that may be read."""
    published = _published(request)
    if published is None:
        return shards.stamp(request, "oasis")
    table, folder = published
    return stamp_of([table, *entries(folder)], table.parent)


def read(request: ImageSetRequest) -> ImageSetContents:
    """From the published folder, or its parent, or from Parquet (whose `label` column holds the valence tertile)."""
    published = _published(request)
    if published is not None:
        return _read_published(*published, request.target)
    files = shards.require_splits(request, "oasis")
    if request.target == "valence":
        return parquet.labelled(files, request, "label")
    notes = Counter(files.notes)
    split, held = parquet.held_out_split(files, "valence_mean", notes)
    train, test = (
        np.array([parquet.column(some, name) for name in ("valence_mean", "arousal_mean")], dtype=np.float64).T
        for some in (files.splits["train"], held)
    )
    names, train_targets, test_targets = _targets(request.target, train, test)
    return ImageSetContents(
        class_names=names,
        train=parquet.Rows(files.splits["train"], request, train_targets),
        test=parquet.Rows(held, request, test_targets),
        regression=request.target == "regression",
        notes=notes,
        origins=files.origins(split),
    )


def _published(request: ImageSetRequest) -> tuple[Path, Path] | None:
    """The table of ratings and the folder of images as they were published, at the path or below it."""
    table = None if request.local is None else find_below(request.local, _TABLE)
    if table is None:
        return None
    folder = find_below(table.parent, "images", depth=0)
    if folder is None:
        raise ImageSetError(f"Unpack OASIS's folder Images beside {_TABLE}: {str(table.parent)!r} has none")
    return table, folder


def _read_published(table: Path, folder: Path, target: str) -> ImageSetContents:
    """A fifth of the themes, in the proportion of the valence tertiles, is the test split, by a hash of the theme."""
    with open(table, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    missing = {"Theme", "Valence_mean", "Arousal_mean"} - set(rows[0] if rows else ())
    if missing:
        raise ImageSetError(f"Fetch {_TABLE} again: it must have the column(s) {sorted(missing)}, but {str(table)!r} has not")
    themes = np.array([row["Theme"].strip() for row in rows])
    ratings = np.array([(float(row["Valence_mean"] or "nan"), float(row["Arousal_mean"] or "nan")) for row in rows])
    in_test = held_out(themes.tolist(), _tertiles(ratings[:, 0], ratings[:, 0]).tolist())
    names, train_targets, test_targets = _targets(target, ratings[~in_test], ratings[in_test])
    files = {file.stem.strip().lower(): file for file in entries(folder)}
    train, test = (
        [
            Item(files.get(theme.lower(), folder / f"{theme}.jpg"), value, theme)
            for theme, value in zip(themes[chosen].tolist(), targets, strict=True)
        ]
        for chosen, targets in ((~in_test, train_targets), (in_test, test_targets))
    )
    origins = {"train": f"{_TABLE} and {folder.name}", "test": "a fifth of the themes of each valence tertile"}
    return ImageSetContents(class_names=names, train=train, test=test, regression=target == "regression", origins=origins)


def _tertiles(ratings: Float[np.ndarray, " N"], train: Float[np.ndarray, " M"]) -> Int[np.ndarray, " N"]:
    return np.asarray(np.digitize(ratings, np.quantile(train, [1 / 3, 2 / 3])))


def _targets(
    target: str, train: Float[np.ndarray, "N 2"], test: Float[np.ndarray, "M 2"]
) -> tuple[tuple[str, ...], list[Any], list[Any]]:
    """Names and targets from (valence, arousal) ratings; every threshold and moment comes from the training split."""
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ImageSetError("Fetch OASIS again: every image must have its two ratings, but some have not")
    if target == "regression":
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        standard_train, standard_test = (((ratings - mean) / deviation).tolist() for ratings in (train, test))
        return ("valence", "arousal"), standard_train, standard_test
    column = ("valence", "arousal").index(target)
    train_classes, test_classes = (_tertiles(ratings[:, column], train[:, column]).tolist() for ratings in (train, test))
    return _CLASS_NAMES[target], train_classes, test_classes


IMAGE_SETS.add(
    "oasis",
    Reader(
        kind="stimuli",
        description="OASIS: 900 scenes with mean ratings of valence and arousal",
        source="Kurdi, Lozano & Banaji 2017, https://osf.io/6pnd7/",
        layout="a folder with OASIS.csv and Images/*.jpg, its parent or its archive, or oasis*train*.parquet and "
        "oasis*test*.parquet (image, label, valence_mean, arousal_mean)",
        licence="free for research, online and offline",
        path="required",
        targets=("valence", "arousal", "regression"),
        has_columns=True,
        groups="a column, in Parquet",
        stamp=stamp,
        read=read,
    ),
)
