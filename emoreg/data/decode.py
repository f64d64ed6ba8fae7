"""One picture in, one square RGB image out: every mode, orientation and kind of damage that files come with."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from emoreg.config.image_sets import Fit
from emoreg.data.layout import POINTER_CURE, is_pointer

Picture = bytes | Path | Image.Image | np.ndarray
"""An encoded image, the file that holds one, or an image already decoded: by Pillow, or as uint8 [H, W] or [H, W, 3 or 4]."""

Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF") if name in Image.OPEN)
"""Formats that are decoded, as far as this Pillow has them. It knows more, but some of those start programs (EPS)."""

# What Pillow raises for files that are damaged, cut short, not images, or too large to be meant, and for tags that are.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by the orientation that EXIF tells."""


class Refused(Exception):
    """A picture that cannot be used; the text is the reason, without the picture's name."""


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Inside, a decompression bomb is an error from Pillow's first limit on, and its remarks about metadata are dropped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(picture: Picture, size: int, fit: Fit = "squeeze") -> tuple[UInt8[np.ndarray, "S S 3"], list[str]]:
    """The picture as ``size`` x ``size`` RGB, and what had to be done to it ("converted from L").

    A picture that is not square is squeezed, so that nothing of the scene is cut away, or cut to the square in its middle.
    Pictures of the right size keep their pixels; the others go through Pillow's bicubic filter, which averages over its whole
    support when it makes smaller. It is turned as its EXIF tells; a tag that cannot be read costs nothing.

    Raises:
        Refused: when it cannot be decoded.
    """
    try:
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        if isinstance(picture, Image.Image):
            return _square(picture, size, fit)
        if (isinstance(picture, Path) and picture.stat().st_size == 0) or picture == b"":
            raise Refused("empty file")
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as image:
            image.draft(None, (2 * size, 2 * size))  # lets JPEG decode at a fraction of a large size
            return _square(image, size, fit)
    except _DAMAGE as error:
        raise Refused(_reason(picture, error)) from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise Refused(f"an array of {pixels.dtype} {list(pixels.shape)}, not of uint8 [H, W] or [H, W, 3 or 4]")
    return Image.fromarray(pixels)


def _reason(picture: Picture, error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        head = picture.read_bytes()[:100] if isinstance(picture, Path) else picture
        return f"pointer of git-lfs: {POINTER_CURE}" if isinstance(head, bytes) and is_pointer(head) else "not an image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "decompression bomb"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    return f"damaged: {str(error).lower()}" if str(error) else "damaged"


def _square(image: Image.Image, size: int, fit: Fit) -> tuple[UInt8[np.ndarray, "S S 3"], list[str]]:
    notes = []
    if getattr(image, "is_animated", False):  # only formats with frames have it
        notes.append("first frame of an animation")
    image.load()
    upright = image
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        notes.append("turned upright by EXIF")
        upright = image.transpose(turn)
    rgb = _to_rgb(upright)
    if rgb is not upright:
        notes.append(f"converted from {image.mode}")
    if rgb.size != (size, size):
        shown = rgb.crop(_middle(rgb.size)) if fit == "crop" else rgb
        rgb = shown.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb), notes


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE:
        return None


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square in the middle of a picture, as left, upper, right and lower."""
    side = min(size)
    left, upper = ((length - side) // 2 for length in size)
    return (left, upper, left + side, upper + side)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB over white. Sixteen bits a channel become eight by their upper byte's share (65535 -> 255), never by clipping."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
            raise Refused("32-bit integers without a known range")
        return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Refused("floating-point pixels without a known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
