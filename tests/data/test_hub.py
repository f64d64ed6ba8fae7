"""Sets of the Hugging Face hub, as its library gives them; no network is asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import check, load
from emoreg.errors import ImageSetError

NAME = "hub://owner/faces"


def test_a_path_that_is_none_of_the_hub_s_is_refused() -> None:
    with pytest.raises(ImageSetError, match=r"Write hub://OWNER/NAME, .*: it is 'hub://faces'"):
        check(ImageSetConfig(name="parquet", path="hub://faces"))


def test_the_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImageSetError, match=r'Run pip install -e "\.\[hub\]": \'hub://owner/faces\' needs the library datasets'
    ):
        check(ImageSetConfig(name="parquet", path=NAME))


def test_a_set_of_pictures_in_folders_becomes_an_image_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., Image.Image]
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    for number in range(20):
        folder = tmp_path / "faces" / ("train" if number < 14 else "test") / ("happy" if number % 2 else "sad")
        folder.mkdir(parents=True, exist_ok=True)
        noise(number).save(folder / f"{number}.png")
    asked: list[tuple[Any, ...]] = []
    fetch = datasets.load_dataset

    def local(name: str, configuration: str | None, *, revision: str | None) -> Any:
        asked.append((name, configuration, revision))
        return fetch(str(tmp_path / "faces"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    config = ImageSetConfig(name="parquet", path=f"{NAME}/small@v1")
    found = load(config, image_size=8, storage=tmp_path)
    assert asked == [("owner/faces", "small", "v1")]
    assert found.class_names == ("happy", "sad")
    assert (len(found.train), len(found.test)) == (14, 6)
    assert load(config, image_size=8, storage=tmp_path).fingerprint == found.fingerprint
    assert len(asked) == 1, "what was prepared is not fetched again"
    in_folders = load(ImageSetConfig(name="folder", path=str(tmp_path / "faces")), image_size=8, storage=tmp_path)
    assert in_folders.class_names == found.class_names
    assert sorted(map(bytes, in_folders.train.images)) == sorted(map(bytes, found.train.images))


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ImageSetError, match=r"Mend the network, or correct the name: 'hub://owner.*no route to the hub"):
        load(ImageSetConfig(name="parquet", path=NAME), image_size=8, storage=tmp_path)
