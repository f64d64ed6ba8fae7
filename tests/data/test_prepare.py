from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import load, prepare, prepared
from emoreg.data.duplicates import find_duplicates
from emoreg.errors import ImageSetError, StorageError
from tests.helpers.waiting import PATIENCE


def of(tree: Path) -> ImageSetConfig:
    return ImageSetConfig(name="folder", path=str(tree))


def prepared_files(storage: Path) -> list[Path]:
    return sorted((storage / "imagesets").glob("*.arrow"))


def test_a_set_is_decoded_once_and_then_mapped(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(of(tree), image_size=16, storage=tmp_path)
    assert first.class_names == ("calm", "wild")
    assert first.train.images.shape == (16, 16, 16, 3)
    assert len(first.test) == 4
    assert not first.regression

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded twice")

    monkeypatch.setattr(prepare, "_prepare", refuse)
    before = pa.total_allocated_bytes()
    second = load(of(tree), image_size=16, storage=tmp_path)
    assert pa.total_allocated_bytes() - before < second.train.images.nbytes // 4
    for array in (second.train.images, second.train.targets, second.test.images, second.test.targets):
        assert not array.flags.owndata
        assert not array.flags.writeable
    assert second.train.images.flags.c_contiguous
    assert np.array_equal(first.train.images, second.train.images)
    assert (first.fingerprint, first.summary) == (second.fingerprint, second.summary)


def test_the_images_outlive_the_removal_of_the_file(tree: Path, tmp_path: Path) -> None:
    image_set = load(of(tree), image_size=16, storage=tmp_path)
    total = int(image_set.train.images.sum())
    shutil.rmtree(tmp_path / "imagesets")
    assert int(image_set.train.images.sum()) == total


def test_any_arrow_reader_understands_the_file(tree: Path, tmp_path: Path) -> None:
    image_set = load(of(tree), image_size=16, storage=tmp_path)
    with pa.ipc.open_file(prepared_files(tmp_path)[0]) as file:
        assert file.num_record_batches == 2
        assert file.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (16, 16, 3))
        assert file.schema.field("target").type == pa.int64()
        assert json.loads(file.schema.metadata[b"class_names"]) == ["calm", "wild"]
        assert file.get_batch(1)["target"].to_pylist() == image_set.test.targets.tolist()


def test_a_changed_source_is_prepared_again_and_its_fingerprint_follows_the_content(
    tree: Path, tmp_path: Path, noise: Callable[..., Image.Image]
) -> None:
    first = load(of(tree), image_size=16, storage=tmp_path)

    os.utime(tree / "calm" / "0.png", (1, 1))
    touched = load(of(tree), image_size=16, storage=tmp_path)
    assert len(prepared_files(tmp_path)) == 2
    assert touched.fingerprint == first.fingerprint

    noise(999).save(tree / "calm" / "0.png")
    repainted = load(of(tree), image_size=16, storage=tmp_path)
    noise(0).save(tree / "calm" / "0.png")
    restored = load(of(tree), image_size=16, storage=tmp_path)
    assert repainted.fingerprint != first.fingerprint
    assert restored.fingerprint == first.fingerprint

    (tree / "wild").rename(tree / "stormy")
    renamed = load(of(tree), image_size=16, storage=tmp_path)
    assert renamed.fingerprint != first.fingerprint
    assert load(of(tree), image_size=12, storage=tmp_path).fingerprint != renamed.fingerprint


def test_the_fingerprint_follows_the_labels(tree: Path, tmp_path: Path) -> None:
    first = load(of(tree), image_size=16, storage=tmp_path)
    (tree / "calm").rename(tree / "swap")
    (tree / "wild").rename(tree / "calm")
    (tree / "swap").rename(tree / "wild")
    swapped = load(of(tree), image_size=16, storage=tmp_path)
    assert swapped.class_names == first.class_names
    assert swapped.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut in half"),
        pytest.param(lambda data: data[:-3], id="end missing"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"not Arrow at all", id="foreign"),
        pytest.param(lambda data: data.replace(b"emoreg.key", b"emoreg.kez"), id="other metadata"),
    ],
)
def test_a_torn_or_foreign_file_is_prepared_again(
    tree: Path, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = load(of(tree), image_size=16, storage=tmp_path)
    (path,) = prepared_files(tmp_path)
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING):
        again = load(of(tree), image_size=16, storage=tmp_path)
    assert "is not a whole prepared image set" in caplog.text
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == good


def test_no_flipped_bit_is_trained_on(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a flipped bit is prepared again, or the bit is none of the set's: in the padding between its parts."""
    monkeypatch.setattr(prepared, "_found_whole", set())
    first = load(of(tree), image_size=16, storage=tmp_path)
    (path,) = prepared_files(tmp_path)
    good, key = path.read_bytes(), pa.ipc.open_file(str(path)).schema.metadata[b"emoreg.key"].decode()
    random = np.random.default_rng(0)
    refused = 0
    for position, bit in zip(random.integers(0, len(good), 1500), random.integers(0, 8, 1500), strict=True):
        damaged = bytearray(good)
        damaged[position] ^= 1 << bit
        path.unlink()
        path.write_bytes(damaged)
        prepared._found_whole.clear()
        opened = prepared.open_prepared(path, "folder", key)
        refused += opened is None
        if opened is not None:
            assert (opened.fingerprint, opened.summary, opened.class_names) == (
                first.fingerprint,
                first.summary,
                first.class_names,
            )
            for found, meant in ((opened.train, first.train), (opened.test, first.test)):
                assert np.array_equal(found.images, meant.images)
                assert np.array_equal(found.targets, meant.targets)
    assert refused > 1000, "the pixels are most of the file"
    prepared._found_whole.clear()
    again = load(of(tree), image_size=16, storage=tmp_path)
    assert path.read_bytes() == good
    assert again.fingerprint == first.fingerprint


def test_a_set_s_digest_is_computed_once_a_process(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, computed = prepared._digest, []
    monkeypatch.setattr(prepared, "_digest", lambda *parts: computed.append(parts) or compute(*parts))
    for _ in range(3):
        load(of(tree), image_size=16, storage=tmp_path)
    assert len(computed) == 2, "as it was written, and as it was opened first"


def _prepare_at_once(tree: Path, storage: Path, barrier: Any) -> tuple[int, str]:
    count = 0
    original = prepare._prepare

    def counting(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_prepare", counting)
        barrier.wait(PATIENCE)
        image_set = load(of(tree), image_size=16, storage=storage)
    return count, image_set.fingerprint


def _prepare_and_tell(tree: Path, storage: Path, barrier: Any, results: Any) -> None:
    results.put(_prepare_at_once(tree, storage, barrier))


def _die_while_preparing(tree: Path, storage: Path, *, written: bool) -> None:
    original = prepare.write_prepared

    def killed(*args: Any) -> None:
        if written:
            original(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    prepare.write_prepared = killed
    load(of(tree), image_size=16, storage=storage)


@pytest.mark.slow
def test_two_processes_at_once_prepare_once_and_agree(tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    other = context.Process(target=_prepare_and_tell, args=(tree, tmp_path, barrier, results))
    other.start()
    answers = [_prepare_at_once(tree, tmp_path, barrier), results.get(timeout=PATIENCE)]
    other.join(PATIENCE)
    assert sorted(count for count, _ in answers) == [0, 1]
    assert len({fingerprint for _, fingerprint in answers}) == 1
    assert len(prepared_files(tmp_path)) == 1


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_could_be_taken_for_a_set(tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for written in (False, True):
        process = context.Process(target=_die_while_preparing, args=(tree, tmp_path), kwargs={"written": written})
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        assert prepared_files(tmp_path) == []
        assert len([path for path in (tmp_path / "imagesets" / "preparing").iterdir() if path.is_dir()]) == 1
    image_set = load(of(tree), image_size=16, storage=tmp_path)
    assert len(image_set.train) == 16
    assert not list((tmp_path / "imagesets" / "preparing").iterdir())
    assert not list((tmp_path / "imagesets").glob(".*.tmp"))


def test_a_few_damaged_images_are_left_out_and_named(tree: Path, tmp_path: Path) -> None:
    (tree / "calm" / "3.png").write_bytes((tree / "calm" / "3.png").read_bytes()[:80])
    image_set = load(of(tree), image_size=16, storage=tmp_path)
    assert len(image_set.train) + len(image_set.test) == 19
    assert image_set.summary["refused: truncated (calm/3.png)"] == 1


def test_many_damaged_images_refuse_the_set(tree: Path, tmp_path: Path) -> None:
    for file in (tree / "calm").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ImageSetError, match=r"at most 1% .* calm/\d\.png \(empty file\)"):
        load(of(tree), image_size=16, storage=tmp_path)
    assert prepared_files(tmp_path) == []
    assert not list((tmp_path / "imagesets" / "preparing").iterdir())


_COMPRESSED = [(kind, damage) for kind in ("zip", "gztar", "bztar", "xztar") for damage in ("zeros", "cut", "byte")]


@pytest.mark.parametrize(("kind", "damage"), [*_COMPRESSED, ("tar", "zeros"), ("tar", "cut")])
def test_a_damaged_archive_is_named(tree: Path, tmp_path: Path, kind: str, damage: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), kind, tree))
    content = archive.read_bytes()
    middle = len(content) // 2
    if kind == "tar":  # which has a checksum of each header alone: what becomes of an image is found when it is decoded
        middle = content.index(b"ustar", middle) - 257
    damaged = {
        "zeros": content[:middle] + bytes(256) + content[middle + 256 :],
        "cut": content[:middle],
        "byte": content[: middle - 9] + bytes([content[middle - 9] ^ 255]) + content[middle - 8 :],
    }
    archive.write_bytes(damaged[damage])
    with pytest.raises(ImageSetError, match=r"archive\.\S+ again: it must be a whole archive"):
        load(of(archive), image_size=16, storage=tmp_path)


def test_an_archive_with_a_password_is_named(tree: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tree))
    encrypted = re.sub(rb"(?s)(PK\x03\x04..|PK\x01\x02....).", b"\\1\x01", archive.read_bytes())
    archive.write_bytes(encrypted)
    with pytest.raises(ImageSetError, match=r"cannot be unpacked .*password"):
        load(of(archive), image_size=16, storage=tmp_path)


def test_a_class_without_an_image_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "void").mkdir()
    with pytest.raises(ImageSetError, match=r"\['void'\] have none"):
        load(of(tree), image_size=16, storage=tmp_path)


def test_a_single_class_is_refused(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / "wild")
    with pytest.raises(ImageSetError, match="two classes"):
        load(of(tree), image_size=16, storage=tmp_path)


def test_doubles_between_the_splits_are_counted(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    shutil.copytree(tree, root / "train")
    for label in ("calm", "wild"):
        (root / "test" / label).mkdir(parents=True)
        shutil.copy(tree / label / "0.png", root / "test" / label)
    (root / "test" / "calm" / "new.png").write_bytes((tree / "wild" / "1.png").read_bytes())
    Image.new("RGB", (5, 5)).save(root / "test" / "wild" / "black.png")
    image_set = load(of(root), image_size=16, storage=tmp_path)
    assert find_duplicates(image_set.train, image_set.test).copies.exact == 3
    assert (len(image_set.train), len(image_set.test)) == (20, 4)


def test_a_class_without_a_test_image_is_counted(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    shutil.copytree(tree, root / "train")
    (root / "test" / "calm").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(root / "test" / "calm" / "black.png")
    assert load(of(root), image_size=16, storage=tmp_path).summary == {"classes without a test image": 1}


def test_a_storage_that_cannot_be_written_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="imagesets' writable"):
        load(of(tree), image_size=16, storage=tmp_path / "file")
