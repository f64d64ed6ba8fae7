"""The real handwritten digits that scikit-learn ships: 1,797 grey images of 8x8 pixels (UCI optical recognition, test set)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from jaxtyping import Bool
from PIL import Image

from emoreg.data.readers.contents import Contents, Item, Request, held_out


def stamp(request: Request) -> list[str]:
    """The release of scikit-learn."""
    return [f"scikit-learn {version('scikit-learn')}"]


def read(request: Request) -> Contents:
    """A fifth of each digit is the test split, chosen by a hash of the row's number."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 levels of ink, 0 to 16, on paper: brought to 8 bits.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    in_test = held_out([f"digits {row}" for row in range(len(images))], digits.target.tolist())

    def items(rows: Bool[np.ndarray, " N"]) -> Iterator[Item]:
        for row in np.flatnonzero(rows):
            yield Item(f"row {row}", Image.fromarray(images[row]).convert("RGB"), int(digits.target[row]))

    return Contents(
        class_names=tuple(str(digit) for digit in range(10)),
        train=items(~in_test),
        num_train=int((~in_test).sum()),
        test=items(in_test),
        num_test=int(in_test.sum()),
    )
