"""Readers that a user registers from a study file."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from emoreg.config import ImageSetConfig
from emoreg.data import IMAGE_SETS, ImageSet, ImageSetContents, ImageSetRequest, Item, check, image_set, load
from emoreg.errors import ConfigError, ImageSetError

MINE = '''
import numpy as np
import emoreg.data as emoreg
from emoreg.data import ImageSetContents

NUM_READ = []

@emoreg.image_set("mine", kind="task")
def mine(request):
    """Squares of noise, dark and bright."""
    NUM_READ.append(1)
    random = np.random.default_rng(SEED)
    targets = np.arange(20) % 2
    images = random.integers(0, 100, (20, 8, 8), dtype=np.uint8) + 100 * targets[:, None, None].astype(np.uint8)
    return ImageSetContents(class_names=["dark", "bright"], train=zip(images, targets))

def study():
    return None
'''


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IMAGE_SETS, "_entries", dict(IMAGE_SETS._entries))


@pytest.fixture
def run_file(tmp_path: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Write the text to a study file, and import it anew."""

    def run(text: str) -> ModuleType:
        path = tmp_path / "my_study.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("my_study", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["my_study"] = module
        spec.loader.exec_module(module)
        return module

    yield run
    sys.modules.pop("my_study", None)


def registered(contents: object, **options: object) -> None:
    """Register a reader that returns what is given, or what that returns when it is called."""
    image_set("mine", **options)(lambda request: contents() if callable(contents) else contents)  # type: ignore[arg-type]


def loaded(storage: Path, **settings: str) -> ImageSet:
    return load(ImageSetConfig(name="mine", **settings), image_size=8, storage=storage)


def noise(number: int, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, *channels), dtype=np.uint8)


def test_a_registered_set_is_read_once_and_split(tmp_path: Path, run_file: Callable[[str], ModuleType]) -> None:
    module = run_file(MINE.replace("SEED", "3"))
    first, second = loaded(tmp_path), loaded(tmp_path)
    assert len(module.NUM_READ) == 1
    assert first.class_names == ("dark", "bright")
    assert np.bincount(first.train.targets).tolist() == [8, 8]
    assert np.bincount(first.test.targets).tolist() == [2, 2]
    assert first.train.images[first.train.targets == 1].min() >= 100
    assert first.fingerprint == second.fingerprint
    assert first.summary == {"converted from L": 20}
    assert check(ImageSetConfig(name="mine")).description == "Squares of noise, dark and bright."


def test_it_is_read_again_when_its_code_has_changed(tmp_path: Path, run_file: Callable[[str], ModuleType]) -> None:
    run_file(MINE.replace("SEED", "3"))
    first = loaded(tmp_path)
    around = run_file(MINE.replace("SEED", "3").replace("return None", "return 'another study'  # with a comment"))
    assert loaded(tmp_path).fingerprint == first.fingerprint
    assert around.NUM_READ == []
    run_file(MINE.replace("SEED", "4"))
    assert loaded(tmp_path).fingerprint != first.fingerprint


def test_it_is_read_again_when_a_file_at_its_path_has_changed(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    aim = tmp_path / "data" / "deep" / "numbers"

    @image_set("mine", path="required")
    def mine(request: ImageSetRequest) -> ImageSetContents:
        assert request.local is not None
        numbers = [int(number) for number in (request.local / "deep" / "numbers").read_text().split()]
        return ImageSetContents(class_names=("a", "b"), train=[(noise(number), number % 2) for number in numbers])

    prints = set()
    for text in ("1 2 3 4", "1 2 3 6"):
        aim.write_text(text)
        prints.add(loaded(tmp_path, path=str(tmp_path / "data")).fingerprint)
    assert len(prints) == 2
    with pytest.raises(ImageSetError, match="Give 'mine' a path"):
        loaded(tmp_path)


def test_it_may_say_what_belongs_together(tmp_path: Path) -> None:
    owners = ("ann", "bob", "cyd", "dan", "eva")
    registered(
        lambda: ImageSetContents(
            class_names=("a", "b"), train=[(noise(n), n % 2, f"picture {n}", owners[n % 5]) for n in range(50)]
        )
    )
    mine = loaded(tmp_path, group="person")
    assert (mine.train.num_groups, mine.test.num_groups, len(mine.test)) == (4, 1, 10)


def test_every_kind_of_picture_is_taken(tmp_path: Path) -> None:
    pixels = noise(0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pictures = [pixels, Image.fromarray(pixels), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()]
    train = [(picture, number % 2) for number, picture in enumerate(pictures)]
    registered(ImageSetContents(class_names=("a", "b"), train=train, test=[Item(noise(1), 0, "one")]))
    mine = loaded(tmp_path)
    assert all(np.array_equal(image, pixels) for image in mine.train.images)
    assert mine.train.targets.tolist() == [0, 1, 0, 1]
    assert np.array_equal(mine.test.images[0], noise(1))


def test_a_regression_set_is_divided_too(tmp_path: Path) -> None:
    train = [(noise(number), (number / 10, -number / 10)) for number in range(10)]
    registered(ImageSetContents(class_names=("up", "down"), train=train, regression=True))
    mine = loaded(tmp_path)
    assert (len(mine.train), len(mine.test)) == (8, 2)
    assert mine.regression
    assert np.allclose(mine.train.targets[:, 0], -mine.train.targets[:, 1])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], "Return an ImageSetContents from the reader of 'mine': it returned 'list'"),
        (ImageSetContents(class_names=("a",), train=[(noise(0), 0)] * 9), "two classes or more"),
        (ImageSetContents(class_names=("a", "b"), train=[], test=[]), "a split must hold an image"),
        (
            ImageSetContents(class_names=("a", "b"), train=[(noise(0).astype(float), 0)] * 9, test=[]),
            r"row 1 \(an array of float64 \[8, 8, 3\], not of uint8",
        ),
        (ImageSetContents(class_names=("a", "b"), train=[(noise(0), "a")] * 9, test=[]), "not the index of a class"),
        (ImageSetContents(class_names=("a", "b"), train=[(noise(0), 2)] * 9, test=[]), "outside the classes"),
        (
            ImageSetContents(class_names=("a", "b"), train=[(noise(0), (0.5,))] * 9, test=[], regression=True),
            r"not 2 finite numbers",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(contents: object, message: str, tmp_path: Path) -> None:
    registered(contents)
    with pytest.raises(ImageSetError, match=message):
        loaded(tmp_path)
    assert not list((tmp_path / "imagesets").glob("*.arrow"))


def test_an_error_of_the_user_s_own_code_is_passed_on(tmp_path: Path) -> None:
    registered(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loaded(tmp_path)


def test_progress_is_told(tmp_path: Path) -> None:
    train, test = ([(noise(number), number % 2) for number in range(count)] for count in (6, 2))
    registered(ImageSetContents(class_names=("a", "b"), train=train, test=(one for one in test)))
    told: list[tuple[str, int, int | None]] = []
    load(
        ImageSetConfig(name="mine"),
        image_size=8,
        storage=tmp_path,
        on_progress=lambda what, done, count: told.append((what, done, count)),
    )
    assert told == [("mine train", done, 6) for done in range(1, 7)] + [("mine test", done, None) for done in (1, 2)]


def test_targets_are_those_that_the_reader_declares() -> None:
    registered(None, targets=("mood", "age"))
    check(ImageSetConfig(name="mine", target="age"))
    with pytest.raises(ImageSetError, match=r"must be one of \['mood', 'age'\], but it is 'weight'"):
        check(ImageSetConfig(name="mine", target="weight"))
    registered(None)
    with pytest.raises(ImageSetError, match="must be left out, but it is 'weight'"):
        check(ImageSetConfig(name="mine", target="weight"))


def test_a_name_that_is_not_registered_is_refused_with_the_nearest() -> None:
    registered(None)
    with pytest.raises(ConfigError, match=r"@emoreg.image_set\('mina'\).*nearest are mine"):
        check(ImageSetConfig(name="mina"))


def test_an_entry_travels(run_file: Callable[[str], ModuleType]) -> None:
    run_file(MINE.replace("SEED", "3"))
    entry = check(ImageSetConfig(name="mine"))
    travelled = pickle.loads(pickle.dumps(entry))
    assert (travelled.read, travelled.fingerprint) == (entry.read, entry.fingerprint)
