from __future__ import annotations

import pytest

from emoreg.data.layout import check_shards, rubbish, set_of, split_of
from emoreg.errors import ImageSetError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAINING training_set my-train-file.csv FER2013Train seg_train train2017 trainA"),
        ("validation", "validation valid Val dev DEV fer2013_validation.parquet x-dev-00000-of-00001.parquet FER2013Valid"),
        ("test", "test TESTING eval evaluation Test1 CIFARTest data.eval.parquet"),
        (None, "happy latest contest trainset détesté train_val 2024 invalid restrain"),
    ],
)
def test_the_hubs_words_for_splits_are_known_in_any_case(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    "name", ["@eaDir", ".@__thumb", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git"]
)
def test_what_systems_leave_behind_is_rubbish(name: str) -> None:
    assert rubbish(name) is not None
    assert rubbish("happy") is None


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"],
        ["train-1-of-2.parquet", "train-2-of-2.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
        ["2023.parquet", "2025.parquet"],
    ],
)
def test_whole_sets_of_shards_are_taken(names: list[str]) -> None:
    check_shards(names)
    if any("of-00002" in name or "of-2" in name for name in names):
        with pytest.raises(ImageSetError, match="Fetch"):  # and no others: one of the two is missing
            check_shards(names[1:])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00001-of-00003.parquet"],
            "Fetch train-0+-of-00003.parquet, train-00002-of-00003.parquet: .* must have 3 such shards",
        ),
        (["train-1-of-3.p", "train-3-of-3.p"], "Fetch train-2-of-3.p"),
        (["train/0000.parquet", "train/0002.parquet"], "Fetch train/0001.parquet"),
        (["x-0-of-1.parquet", "x-0-of-2.parquet", "x-1-of-2.parquet"], "Keep one version .* x-*-of-1 and x-*-of-2"),
        (["x-0-of-1-aa.parquet", "x-0-of-1-bb.parquet"], "each shard must be there once, but x-0-of-1-aa.parquet"),
    ],
)
def test_missing_and_double_shards_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ImageSetError, match=message.replace("x-*", r"x-\*")):
        check_shards(names)


def test_files_of_one_set_agree_in_their_names_but_for_split_and_number() -> None:
    names = ("FER2013_train-00000-of-00002-a09b74b3ef9c3b56.parquet", "fer2013_TEST.parquet", "Fer2013-dev-1-of-1.parquet")
    assert {set_of(name) for name in names} == {"fer"}
    assert set_of("train-00000-of-00001.parquet") == set_of("test2.parquet") == ""
    assert set_of("oasis_train.parquet") == "oasis"
