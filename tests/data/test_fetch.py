from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emoreg.config import ImageSetConfig
from emoreg.config.resolved import source_of
from emoreg.data import load
from emoreg.data.fetch import FetchedSets, offer
from emoreg.data.prepare import Prepared
from emoreg.errors import StorageError
from emoreg.storage.files import Files

DIGITS = ImageSetConfig(name="digits")


def test_a_machine_fetches_a_set_once_and_has_what_the_driver_has(bucket: str, storage: Path, tmp_path: Path) -> None:
    files = Files(bucket)
    prepared = offer(DIGITS, image_size=8, storage=storage, files=files)
    assert [found.name for found in files.find()] == [prepared.name]
    sets = FetchedSets(offered={source_of(DIGITS, 8): prepared}, files=files, folder=tmp_path / "machine")
    fetched, original = sets(DIGITS, image_size=8), load(DIGITS, image_size=8, storage=storage)
    assert fetched.fingerprint == original.fingerprint
    assert np.array_equal(fetched.train.images, original.train.images)
    files.remove(prepared.name)  # a second trial asks nobody
    assert sets(ImageSetConfig(name="digits", num_images=50), image_size=8).fingerprint == original.fingerprint


def test_a_set_on_this_machine_s_own_storage_is_not_copied(storage: Path) -> None:
    before = sorted((storage / "imagesets").iterdir())
    prepared = offer(DIGITS, image_size=8, storage=storage, files=Files(str(storage / "imagesets")))
    assert prepared.name in {path.name for path in (storage / "imagesets").iterdir()}
    assert {path.suffix for path in (storage / "imagesets").iterdir()} <= {".arrow", ".lock", ""}
    assert set(before) <= set((storage / "imagesets").iterdir())


def test_another_set_under_its_name_is_not_learned_from(bucket: str, storage: Path, tmp_path: Path) -> None:
    files = Files(bucket)
    prepared = offer(DIGITS, image_size=8, storage=storage, files=files)
    other = Prepared(name=prepared.name, key="0" * 64)
    sets = FetchedSets(offered={source_of(DIGITS, 8): other}, files=files, folder=tmp_path)
    with pytest.raises(StorageError, match="must be the image set that the driver prepared"):
        sets(DIGITS, image_size=8)
