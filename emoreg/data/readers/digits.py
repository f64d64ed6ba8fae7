"""The real handwritten digits that scikit-learn ships: 1,797 grey images of 8x8 pixels (UCI optical recognition, test set)."""

from __future__ import annotations

import numpy as np

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader


def read(request: ImageSetRequest) -> ImageSetContents:
    """A fifth of each digit is the test split, chosen by a hash of the row's number."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 levels of ink, 0 to 16, on paper: brought to 8 bits, in three channels.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    rows = enumerate(zip(images, digits.target, strict=True))
    return ImageSetContents(
        class_names=[str(digit) for digit in range(10)],
        train=[Item(image, digit, f"digits {row}") for row, (image, digit) in rows],
    )


IMAGE_SETS.add(
    "digits",
    Reader(
        kind="task",
        description="1,797 real handwritten digits, 8x8 grey",
        source='pip install -e ".[quickstart]" (scikit-learn)',
        layout="no path",
        licence="CC BY 4.0, UCI Optical Recognition of Handwritten Digits",
        path="none",
        targets=("digit",),
        package=("sklearn", "scikit-learn"),
        read=read,
    ),
)
