"""Parquet files as people have them: splits, shards, snapshots of the hub, columns, labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import ImageSet, load
from emoreg.errors import ImageSetError
from emoreg.storage.files import Files

Write = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture
def pictures(noise: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> list[bytes]:
    return [png(noise(number, (8, 8))) for number in range(20)]


@pytest.fixture
def write(root: Path, pictures: list[bytes]) -> Write:
    """Writes a file of ``num`` pictures, half of each label, under the names of columns that are given."""

    def write(name: str, num: int = 20, *, label: str = "label", image: str = "image", **columns: Any) -> None:
        table = {image: pictures[:num], label: [row % 2 for row in range(num)]} | columns
        put(root / name, table)

    return write


def put(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    pq.write_table(table if metadata is None else table.replace_schema_metadata(metadata), path)


def read(root: Path, **settings: Any) -> ImageSet:
    return load(ImageSetConfig(name="parquet", path=str(root), **settings), image_size=8, storage=root.parent)


def sizes(image_set: ImageSet) -> tuple[int, int]:
    return len(image_set.train), len(image_set.test)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training.parquet", "eval.parquet"),
        ("Train.parquet", "TESTING.parquet"),
        ("my_training-00000-of-00001.parquet", "my_dev-00000-of-00001.parquet"),
        ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "data/test-00000-of-00001-1a2b74b3ef9c3b56.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/part-0.parquet", "validation/part-0.parquet"),
        ("snapshot/plain_text/train-00000-of-00001.parquet", "snapshot/plain_text/test-00000-of-00001.parquet"),
    ],
)
def test_splits_are_known_by_the_hubs_words_wherever_a_snapshot_has_them(
    root: Path, write: Write, train: str, test: str
) -> None:
    write(train)
    write(test, 8)
    (root / "README.md").write_text("---\nconfigs: []\n---\n")
    (root / ".cache").mkdir()
    write(".cache/huggingface/train-00000-of-00002.parquet")
    write("__MACOSX/train.parquet")
    found = read(root)
    assert sizes(found) == (20, 8)
    assert found.origins == {"train": train, "test": test}


def test_a_snapshot_in_an_object_store_is_read_as_one_here(root: Path, write: Write, bucket: str) -> None:
    for split, num in (("train", 20), ("test", 8)):
        write(f"default/{split}/0000.parquet", num)
        Files(bucket).write(f"default/{split}/0000.parquet", (root / f"default/{split}/0000.parquet").read_bytes())
    there = load(ImageSetConfig(name="parquet", path=bucket), image_size=8, storage=root.parent)
    assert there.fingerprint == read(root).fingerprint
    assert there.origins == read(root).origins


def test_a_missing_shard_is_named(root: Path, write: Write) -> None:
    write("train-00000-of-00002.parquet")
    write("test-00000-of-00001.parquet", 8)
    with pytest.raises(ImageSetError, match=r"Fetch train-00001-of-00002.parquet: .* must have 2 such shards, but it has 1"):
        read(root)
    with pytest.raises(ImageSetError, match=r"Fetch train-00001-of-00002.parquet"):
        read(root / "train-00000-of-00002.parquet")
    write("train-00001-of-00002.parquet")
    assert sizes(read(root)) == (40, 8)


def test_several_files_without_a_split_are_not_merged(root: Path, write: Write) -> None:
    write("one.parquet")
    write("two.parquet", 8)
    with pytest.raises(
        ImageSetError, match=r"Name the splits train and test .*\['one.parquet', 'two.parquet'\] .* tells a split"
    ):
        read(root)


@pytest.mark.parametrize("other", ["oasis_train.parquet", "oasis_test.parquet"])
def test_files_of_two_sets_are_not_mixed(root: Path, write: Write, other: str) -> None:
    write("fer_train.parquet")
    write("fer_dev.parquet", 8)
    write(other, 8)
    with pytest.raises(ImageSetError, match=r"Keep one image set in a folder.*\['fer_.*', 'oasis_.*'\] have other"):
        read(root)


def test_folders_of_splits_may_hold_files_of_any_name(root: Path, write: Write) -> None:
    for name in ("train/web.parquet", "train/books.parquet", "test/web.parquet"):
        write(name)
    assert sizes(read(root)) == (40, 20)


def test_shards_without_a_split_are_one_file_that_is_divided(root: Path, write: Write) -> None:
    write("faces-00000-of-00002.parquet")
    write("faces-00001-of-00002.parquet")
    assert sizes(read(root)) == (32, 8)


def test_a_file_beside_the_splits_is_counted(root: Path, write: Write) -> None:
    for name in ("train.parquet", "test.parquet", "index.parquet"):
        write(name)
    assert read(root).summary["passed over: Parquet file that names no split"] == 1


def test_configurations_are_not_mixed(root: Path, write: Write) -> None:
    for name in ("plain", "aligned"):
        write(f"{name}/train-00000-of-00001.parquet")
        write(f"{name}/test-00000-of-00001.parquet", 8)
    with pytest.raises(ImageSetError, match=r"Give the path of one of the folders \['aligned', 'plain'\]"):
        read(root)
    assert sizes(read(root / "plain")) == (20, 8)


def test_a_file_that_is_named_is_read_whatever_split_it_says(root: Path, write: Write) -> None:
    write("test.parquet")
    assert sizes(read(root / "test.parquet")) == (16, 4)


def test_a_pointer_of_git_lfs_is_named_as_such(root: Path) -> None:
    root.mkdir()
    (root / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    with pytest.raises(ImageSetError, match=r"Fetch the files themselves \(run `git lfs pull`.*train.parquet is a pointer"):
        read(root)


@pytest.mark.parametrize(
    ("image", "label"),
    [("img_bytes", "labels"), ("photo", "emotion"), ("image", "expression"), ("img", "class"), ("pixels", "fine_label")],
)
def test_the_one_column_of_bytes_and_the_usual_labels_are_found(root: Path, write: Write, image: str, label: str) -> None:
    write("mine.parquet", image=image, label=label, file=["x"] * 20, size=[1] * 20)
    assert sizes(read(root)) == (16, 4)


def test_of_several_columns_the_one_that_is_asked_for_is_read(root: Path, write: Write, pictures: list[bytes]) -> None:
    write("mine.parquet", image="face", scene=pictures[::-1], mood=["low", "high"] * 10)
    with pytest.raises(
        ImageSetError, match=r"--image-column\), one of \['face', 'scene'\]: .*mine.parquet has the columns face \(binary\)"
    ):
        read(root)
    face, scene = (read(root, image_column=name, target="mood") for name in ("face", "scene"))
    assert face.class_names == scene.class_names == ("high", "low")
    assert face.fingerprint != scene.fingerprint
    with pytest.raises(ImageSetError, match="Name the column of the images"):
        read(root, image_column="mood and more")


def test_a_reader_without_columns_refuses_one() -> None:
    with pytest.raises(ImageSetError, match="Leave out the image_column of 'digits': it has no columns, but it is 'img'"):
        load(ImageSetConfig(name="digits", image_column="img"), image_size=8, storage=Path("nowhere"))


def tensor(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


GREY = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("column", "pixels"),
    [
        pytest.param(pa.array(GREY.reshape(20, -1).tolist(), pa.list_(pa.uint8())), GREY, id="flat list"),
        pytest.param(pa.array(GREY.tolist()), GREY, id="rows of int64"),
        pytest.param(pa.array(COLOUR.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))), COLOUR, id="channels last"),
        pytest.param(pa.array(COLOUR.transpose(0, 3, 1, 2).tolist()), COLOUR, id="channels first"),
        pytest.param(pa.array(GREY[..., None].tolist()), GREY, id="one channel"),
        pytest.param(tensor(COLOUR), COLOUR, id="tensor"),
        pytest.param(tensor(GREY), GREY, id="grey tensor"),
        pytest.param(pa.array([" ".join(map(str, one.ravel())) for one in GREY]), GREY, id="text"),
    ],
)
def test_pixels_in_cells_are_pictures(root: Path, column: pa.Array, pixels: np.ndarray) -> None:
    put(root / "train.parquet", {"pixels": column, "label": [0, 1] * 10})
    put(root / "test.parquet", {"pixels": column, "label": [0, 1] * 10})
    found = read(root)
    expected = pixels if pixels.ndim == 4 else pixels[..., None].repeat(3, axis=-1)
    assert np.array_equal(found.train.images, expected)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(np.zeros((20, 8, 8)).tolist()), r"it must hold bytes of encoded images.*image \(list<"),
        (pa.array(["a.png"] * 20), r"it must hold bytes of encoded images.*image \(string\)"),
        (pa.array(np.zeros((20, 3072), np.uint8).tolist()), r"may be unreadable.*an array of uint8 \[3072\]"),
        (pa.array([{"bytes": None, "path": "a.png"}] * 20, IMAGE), r"may be unreadable.*no bytes, only the path 'a.png'"),
        (pa.array(np.full((20, 8, 8), 999).tolist()), r"may be unreadable.*an array of int64 \[8, 8\]"),
    ],
)
def test_cells_that_are_no_pictures_are_refused_by_what_they_are(root: Path, column: pa.Array, message: str) -> None:
    put(root / "mine.parquet", {"image": column, "label": [0, 1] * 10})
    with pytest.raises(ImageSetError, match=message):
        read(root)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts_of_every_type_are_labels(root: Path, pictures: list[bytes], kind: pa.DataType) -> None:
    put(root / "mine.parquet", {"image": pictures, "label": pa.array(["sad", "happy"] * 10, kind)})
    assert read(root).class_names == ("happy", "sad")


def hub(names: object, *, label: str = "label") -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}})}


@pytest.mark.parametrize(
    "metadata",
    [
        {"huggingface": "{}"},
        {"huggingface": "no JSON"},
        {"huggingface": "[1]"},
        {"huggingface": '{"info": null}'},
        {"huggingface": '{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}'},
        hub(None),
        hub([1, 2]),
    ],
)
def test_odd_metadata_of_the_hub_cost_nothing_but_the_names(
    root: Path, pictures: list[bytes], metadata: dict[str, str]
) -> None:
    put(root / "mine.parquet", {"image": pictures, "label": [0, 1] * 10}, metadata)
    assert read(root).class_names == ("0", "1")


def test_class_names_that_are_no_names_are_refused(root: Path, pictures: list[bytes]) -> None:
    put(root / "mine.parquet", {"image": pictures, "label": [0, 1] * 10}, {"class_names": "happy, sad"})
    with pytest.raises(ImageSetError, match=r"Write class_names as a JSON list of names: .* have 'happy, sad'"):
        read(root)


def test_the_one_class_label_is_the_label(root: Path, pictures: list[bytes]) -> None:
    columns = {"image": pictures, "mood": [0, 1] * 10, "age": [30] * 20}
    put(root / "mine.parquet", columns, hub(["happy", "sad"], label="mood"))
    assert read(root).class_names == ("happy", "sad")


def test_a_declared_class_without_an_image_is_left_out_with_a_note(root: Path, pictures: list[bytes]) -> None:
    names = hub(["contempt", "happy", "fear", "sad"])
    for split in ("train", "test"):
        put(root / f"{split}.parquet", {"image": pictures, "label": [1, 3] * 10}, names)
    found = read(root)
    assert found.class_names == ("happy", "sad")
    assert found.train.targets.tolist() == [0, 1] * 10
    assert found.summary["left out: declared class without an image (contempt)"] == 1
    assert found.summary["left out: declared class without an image (fear)"] == 1


def test_a_class_that_only_the_test_split_has_is_refused(root: Path, pictures: list[bytes]) -> None:
    put(root / "train.parquet", {"image": pictures, "label": [0, 1] * 10}, hub(["happy", "sad", "fear"]))
    put(root / "test.parquet", {"image": pictures, "label": [1, 2] * 10}, hub(["happy", "sad", "fear"]))
    with pytest.raises(ImageSetError, match=r"each must have a training image, but \['fear'\] have none"):
        read(root)


@pytest.mark.parametrize("labels", [[-1] * 8, pa.nulls(8, pa.int64()), [math.nan] * 8, [""] * 8, None])
def test_a_test_split_without_labels_is_said_and_the_validation_split_taken(
    root: Path, pictures: list[bytes], write: Write, labels: Sequence[int] | None
) -> None:
    write("train.parquet")
    put(root / "test.parquet", {"image": pictures[:8], "label": labels})
    assert sizes(read(root)) == (16, 4)
    write("validation.parquet", 10)
    found = read(root)
    assert sizes(found) == (20, 10)
    assert found.origins["test"] == "validation.parquet"
    assert found.summary["left out: no labels in test"] == 8


def test_a_validation_split_beside_a_labelled_test_split_is_left_out_and_counted(root: Path, write: Write) -> None:
    for split, num in (("train", 20), ("dev", 10), ("test", 8)):
        write(f"{split}.parquet", num)
    found = read(root)
    assert sizes(found) == (20, 8)
    assert found.summary["left out: validation"] == 10


def test_a_column_says_what_belongs_together(root: Path, write: Write) -> None:
    write("images.parquet", person=[f"p{row % 5}" for row in range(19)] + [None])
    whole, cut = read(root), read(root, group="person")
    assert (cut.train.num_groups, cut.test.num_groups) == (5, 1)
    assert cut.summary == {"images without a group, each by itself": 1}
    assert cut.fingerprint != whole.fingerprint
    assert whole.train.groups is None
    with pytest.raises(ImageSetError, match=r"Name a column as the image set's group .* a column 'scene'"):
        read(root, group="scene")


def test_numbers_are_groups_too_and_official_splits_stay(root: Path, write: Write) -> None:
    write("train.parquet", 12, person=[row // 4 for row in range(12)])
    write("test.parquet", 6, person=[row // 2 + 1 for row in range(6)])
    faces = read(root, group="person")
    assert sizes(faces) == (12, 6)
    assert (faces.train.num_groups, faces.test.num_groups) == (3, 3)
    assert {name: count for name, count in faces.summary.items() if "group" in name} == {
        "groups that are in train and in test": 2,
        "test images of a group that is also in train": 4,
    }
