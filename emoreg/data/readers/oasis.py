"""OASIS (Kurdi, Lozano & Banaji 2017): scenes with the mean valence and arousal that raters gave them, 1 to 7.

Targets: `valence` and `arousal` are tertiles (a third of the training images each); `regression` is the pair of ratings,
standardised with the training split's mean and deviation.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from emoreg.data.readers import folder, parquet
from emoreg.data.readers.contents import Contents, Item, Request, held_out
from emoreg.errors import ImageSetError

_CLASS_NAMES = {"valence": ("negative", "neutral", "positive"), "arousal": ("calm", "moderate", "aroused")}


def stamp(request: Request) -> list[str]:
    """Name, size and time of change of every file that is read."""
    if _is_published(request):
        root = folder.local(request.path)
        files = [root / "OASIS.csv", *sorted(_image_folder(root).iterdir())]
        return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    assert request.path is not None
    return parquet.stamp_of(parquet.require_splits(request.path, "oasis"))


def read(request: Request) -> Contents:
    """From Parquet (whose `label` column holds the valence tertile) or from the published folder."""
    if _is_published(request):
        return _read_published(folder.local(request.path), request.target)
    assert request.path is not None
    shards = parquet.require_splits(request.path, "oasis")
    if request.target == "valence":
        return parquet.labelled(shards, "label")
    train, test = (_ratings(shards[split]) for split in ("train", "test"))
    names, train_targets, test_targets = _targets(request.target, train, test)
    return Contents(
        class_names=names,
        train=shards["train"].items(train_targets, np.ones(len(train), dtype=bool)),
        num_train=len(train),
        test=shards["test"].items(test_targets, np.ones(len(test), dtype=bool)),
        num_test=len(test),
        regression=request.target == "regression",
    )


def _is_published(request: Request) -> bool:
    return request.path is not None and "://" not in request.path and (folder.local(request.path) / "OASIS.csv").is_file()


def _image_folder(root: Path) -> Path:
    for name in ("Images", "images"):
        if (root / name).is_dir():
            return root / name
    raise ImageSetError(f"OASIS must have its folder Images beside OASIS.csv, but {str(root)!r} has none: unpack it there")


def _ratings(shards: parquet.Shards) -> Float[np.ndarray, "N 2"]:
    return np.array([shards.column("valence_mean"), shards.column("arousal_mean")], dtype=np.float64).T


def _tertiles(ratings: Float[np.ndarray, " N"], train: Float[np.ndarray, " M"]) -> Int[np.ndarray, " N"]:
    return np.asarray(np.digitize(ratings, np.quantile(train, [1 / 3, 2 / 3])))


def _targets(
    target: str, train: Float[np.ndarray, "N 2"], test: Float[np.ndarray, "M 2"]
) -> tuple[tuple[str, ...], list[parquet.Target], list[parquet.Target]]:
    """Names and targets from (valence, arousal) ratings; every threshold and moment comes from the training split."""
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ImageSetError("every image of OASIS must have its two ratings, but some have not: fetch the set again")
    if target == "regression":
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        standard: list[list[parquet.Target]] = [
            [tuple(row) for row in ((ratings - mean) / deviation).tolist()] for ratings in (train, test)
        ]
        return ("valence", "arousal"), standard[0], standard[1]
    column = ("valence", "arousal").index(target)
    classes = [_tertiles(ratings[:, column], train[:, column]).tolist() for ratings in (train, test)]
    return _CLASS_NAMES[target], classes[0], classes[1]


def _read_published(root: Path, target: str) -> Contents:
    """A fifth of the themes, in the proportion of the valence tertiles, is the test split, by a hash of the theme."""
    images = _image_folder(root)
    with open(root / "OASIS.csv", encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    missing = {"Theme", "Valence_mean", "Arousal_mean"} - set(rows[0] if rows else ())
    if missing:
        raise ImageSetError(f"OASIS.csv must have the column(s) {sorted(missing)}, but {str(root)!r} has not: fetch it again")
    themes = [row["Theme"].strip() for row in rows]
    ratings = np.array([(float(row["Valence_mean"] or "nan"), float(row["Arousal_mean"] or "nan")) for row in rows])
    in_test = held_out(themes, _tertiles(ratings[:, 0], ratings[:, 0]).tolist())
    names, train_targets, test_targets = _targets(target, ratings[~in_test], ratings[in_test])

    def items(chosen: Bool[np.ndarray, " N"], targets: list[parquet.Target]) -> Iterator[Item]:
        for row, value in zip(np.flatnonzero(chosen), targets, strict=True):
            yield Item(themes[row], images / f"{themes[row]}.jpg", value)

    return Contents(
        class_names=names,
        train=items(~in_test, train_targets),
        num_train=len(train_targets),
        test=items(in_test, test_targets),
        num_test=len(test_targets),
        regression=target == "regression",
    )
