"""``emoreg data prepare`` as a user meets it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emoreg.cli.main import main

Prepare = Callable[..., list[str]]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Prepares ``faces`` in the working directory, and gives the lines that are printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def prepare(name: str, *options: str) -> list[str]:
        with pytest.raises(SystemExit) as end:
            main(["data", "prepare", name, "--image-size", "8", *options])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        lines = out.splitlines()
        assert len(lines) <= 23, "a screen has 24"
        assert max(map(len, lines)) <= 80
        return [" ".join(line.split()) for line in lines]

    return prepare


def draw(folder: str, *, num: int, side: tuple[int, int] = (8, 8)) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(num):
        pixels = np.random.default_rng([number, *folder.encode()]).integers(0, 256, (*side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{number}.png")


def test_it_says_how_a_folder_was_understood(prepare: Prepare) -> None:
    for name, num in (("happy", 6), ("sad", 3)):
        draw(f"faces/Training/{name}", num=num)
        draw(f"faces/Testing/{name}", num=2)
        draw(f"faces/Training/{name}/@eaDir", num=2)
    draw("faces/dev/happy", num=4)
    lines = prepare("folder", "--path", "faces")
    assert lines[0].startswith("folder: 9 training and 4 test images of 8 px, fingerprint ")
    assert lines[1:] == [
        *("", "split images from", "train 9 Training", "test 4 Testing"),
        *("", "class train test", "happy 6 2", "sad 3 2"),
        *("", "note count", "left out: dev 4", "passed over: folder of a system 2"),
    ]


def test_it_counts_groups(prepare: Prepare) -> None:
    for person in ("ann", "bob", "cyd", "dan", "eva"):
        draw(f"faces/{person}/happy", num=3)
        draw(f"faces/{person}/sad", num=2)
    lines = prepare("folder", "--path", "faces", "--group", "person/class")
    assert lines[1:] == [
        *(
            "",
            "split images groups from",
            "train 20 4 the path itself",
            "test 5 1 a fifth of each class of train, groups whole",
        ),
        *("", "class train test", "happy 12 3", "sad 8 2"),
    ]


def test_it_counts_images_on_both_sides_of_a_cut(prepare: Prepare) -> None:
    for name in ("happy", "sad"):
        draw(f"faces/train/{name}", num=20)
        draw(f"faces/test/{name}", num=3)
    for number in range(2):
        Image.open(f"faces/train/sad/{number}.png").save(f"faces/test/happy/copy {number}.png")
    lines = prepare("folder", "--path", "faces")
    assert lines[-3:] == ["", "also in train exact near", "test 2 0"]


def test_a_set_that_is_divided_says_so(prepare: Prepare) -> None:
    lines = prepare("digits")
    assert "test 359 a fifth of each class of train" in lines
    assert "9 144 36" in lines


def test_many_classes_and_notes_fit_a_screen(prepare: Prepare) -> None:
    for number in range(30):
        draw(f"faces/train/{'a long name of a class ' * 5}{number:02}", num=1)
        draw(f"faces/test/{'a long name of a class ' * 5}{number:02}", num=1)
    for number in range(9):
        draw(f"faces/another folder {number}", num=1)
    lines = prepare("folder", "--path", "faces")
    assert "24 others 24 24" in lines
    assert "4 other notes 4" in lines


def test_the_shape_of_pictures_is_chosen(prepare: Prepare) -> None:
    for name in ("happy", "sad"):
        draw(f"faces/{name}", num=5, side=(8, 20))
    squeezed, cropped = (prepare("folder", "--path", "faces", "--fit", fit)[0] for fit in ("squeeze", "crop"))
    assert squeezed != cropped


@pytest.mark.parametrize("name", ["hub:owner/faces", "hub://owner/faces"])
def test_a_set_of_the_hub_goes_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find(name))
    with pytest.raises(SystemExit) as end:
        main(["data", "prepare", name])
    assert end.value.code == 2
    assert """Run pip install -e ".[hub]": 'hub://owner/faces' needs the library datasets""" in capsys.readouterr().err
