from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the data of {SHARED} are not on this machine")
    return SHARED.resolve()


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """An RGB picture that depends on its number alone."""

    def make(number: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture
def png() -> Callable[[Image.Image], bytes]:
    def encode(image: Image.Image) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    return encode


@pytest.fixture
def tree(tmp_path: Path, noise: Callable[..., Image.Image]) -> Path:
    """A folder of images with two classes of ten, in no splits."""
    root = tmp_path / "tree"
    for index, label in enumerate(("calm", "wild")):
        (root / label).mkdir(parents=True)
        for number in range(10):
            noise(100 * index + number).save(root / label / f"{number}.png")
    return root
