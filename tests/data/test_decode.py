from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from emoreg.data.decode import FORMATS, Refused, decode, strict_decoding


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def plain(mode: str, color: Any) -> Image.Image:
    return Image.new(mode, (8, 8), color)


GREY_16 = encoded(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "PNG")


def test_the_usual_formats_are_decoded() -> None:
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"} <= set(FORMATS)
    assert "EPS" not in FORMATS


@pytest.mark.parametrize(
    ("picture", "color", "notes"),
    [
        pytest.param(encoded(plain("RGB", (10, 20, 30)), "PNG"), (10, 20, 30), [], id="rgb"),
        pytest.param(encoded(plain("L", 77), "PNG"), (77, 77, 77), ["converted from L"], id="grey"),
        pytest.param(encoded(plain("1", 1), "PNG"), (255, 255, 255), ["converted from 1"], id="bilevel"),
        pytest.param(encoded(plain("LA", (0, 51)), "PNG"), (204, 204, 204), ["converted from LA"], id="grey over white"),
        pytest.param(encoded(plain("RGBA", (255, 0, 0, 0)), "PNG"), (255, 255, 255), ["converted from RGBA"], id="clear"),
        pytest.param(encoded(plain("RGBA", (255, 0, 0, 51)), "PNG"), (255, 204, 204), ["converted from RGBA"], id="pink"),
        pytest.param(encoded(plain("RGB", (9, 9, 200)).quantize(4), "PNG"), (9, 9, 200), ["converted from P"], id="palette"),
        pytest.param(
            encoded(plain("RGB", (9, 9, 200)).quantize(4), "PNG", transparency=0),
            (255, 255, 255),
            ["converted from P"],
            id="transparent palette",
        ),
        pytest.param(
            GREY_16,
            (128, 128, 128),
            [f"converted from {Image.open(io.BytesIO(GREY_16)).mode}"],  # Pillow called it I, and calls it I;16
            id="16 bits",
        ),
        pytest.param(encoded(plain("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0), ["converted from CMYK"], id="cmyk"),
    ],
)
def test_every_mode_becomes_rgb_over_white(picture: bytes, color: tuple[int, ...], notes: list[str]) -> None:
    pixels, seen = decode(picture, 8)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == color).all()
    assert seen == notes


def test_pixels_of_the_right_size_are_kept(noise: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> None:
    image = noise(3, (32, 32))
    pixels, notes = decode(png(image), 32)
    assert np.array_equal(pixels, np.asarray(image))
    assert notes == []


def test_making_smaller_averages_instead_of_picking() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels, _ = decode(Image.fromarray(checks).convert("RGB"), 8)
    assert abs(pixels.astype(int) - 127).max() <= 8


def test_a_wide_picture_is_squeezed_not_cut() -> None:
    wide = Image.new("RGB", (80, 20), "black")
    wide.paste("white", (72, 0, 80, 20))
    pixels, _ = decode(wide, 10)
    assert pixels[:, -1].min() > 200
    assert pixels[:, :8].max() < 60


def test_orientation_is_followed() -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    pixels, notes = decode(encoded(image, "JPEG", exif=exif, quality=95), 16)
    assert pixels[:4].max() < 20
    assert pixels[-4:].min() > 235
    assert notes == ["turned upright by EXIF"]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF as bytes: of each entry its tag, type, number of values, and value in four bytes."""
    tags = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + tags + struct.pack("<L", 0)


TURNED = (0x112, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param((0x9000, 11, 1, struct.pack("<f", 1.0)), id="a version that is a number"),
        pytest.param((0x103, 8, 1, struct.pack("<hh", -1, 0)), id="a compression below 0"),
        pytest.param((0x8769, 4, 1, b"\xff\xff\xff\x7f"), id="an inner directory that is nowhere"),
    ],
)
def test_no_tag_costs_a_picture_or_its_orientation(odd: tuple[int, int, int, bytes]) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 8, 16))  # the left half, which turning to the right brings to the top
    pixels, notes = decode(encoded(image, "JPEG", exif=exif(TURNED, odd), quality=95), 16)
    assert notes == ["turned upright by EXIF"]
    assert pixels[:6].min() > 235
    assert pixels[-6:].max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_followed_as_pillow_does(orientation: int, noise: Callable[..., Image.Image]) -> None:
    image = noise(7, (12, 8))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    data = encoded(image, "PNG", exif=image.getexif())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, 8)[0], decode(upright, 8)[0])


def test_junk_in_the_place_of_exif_costs_nothing() -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n junk")
    pixels, _ = decode(encoded(plain("RGB", (1, 2, 3)), "PNG", pnginfo=info), 8)
    assert (pixels == (1, 2, 3)).all()


def test_a_wide_picture_can_be_cropped_to_its_middle() -> None:
    wide = Image.new("RGB", (80, 20), "black")
    wide.paste("white", (30, 0, 50, 20))
    pixels, _ = decode(wide, 10, "crop")
    assert pixels.min() == 255
    assert decode(wide.transpose(Image.Transpose.ROTATE_90), 10, "crop")[0].min() == 255
    assert decode(wide, 10)[0].max() == 255 > decode(wide, 10)[0].min()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation(image_format: str) -> None:
    first, second = plain("RGB", (255, 0, 0)), plain("RGB", (0, 0, 255))
    pixels, notes = decode(encoded(first, image_format, save_all=True, append_images=[second], lossless=True), 8)
    assert (pixels == (255, 0, 0)).all()
    assert "first frame of an animation" in notes


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"0" * 9)
    chunks = (struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        pytest.param(b"", "empty file", id="empty"),
        pytest.param(b"<html>not found</html>", "not an image", id="html"),
        pytest.param(encoded(Image.effect_noise((64, 64), 90), "PNG")[:900], "truncated", id="half a PNG"),
        pytest.param(encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "truncated", id="half a JPEG"),
        pytest.param(png_header(10_000, 10_000), "decompression bomb", id="bomb"),
        pytest.param(png_header(60_000, 60_000), "decompression bomb", id="large bomb"),
        pytest.param(encoded(plain("F", 0.5), "TIFF"), "floating-point pixels", id="floats"),
        pytest.param(encoded(plain("I", 1 << 20), "TIFF"), "32-bit integers", id="large integers"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of git-lfs: run", id="git-lfs"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="postscript"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(picture: bytes, reason: str) -> None:
    with strict_decoding(), pytest.raises(Refused, match=reason):
        decode(picture, 8)


def test_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(Refused, match="empty file"):
        decode(tmp_path / "empty.png", 8)
    with pytest.raises(Refused, match="no such file"):
        decode(tmp_path / "absent.png", 8)


@pytest.mark.parametrize("cut", range(10, 900, 97))
def test_a_file_cut_anywhere_is_decoded_or_refused(cut: int) -> None:
    """Whatever Pillow raises for damage is turned into a refusal."""
    for image_format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(Image.effect_noise((24, 24), 90).convert("RGB"), image_format)
        with strict_decoding(), contextlib.suppress(Refused):
            pixels, _ = decode(data[: min(cut, len(data) - 1)], 8)
            assert pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "MPO"])
def test_whatever_bytes_change_a_file_is_decoded_or_refused(image_format: str) -> None:
    random = np.random.default_rng(0)
    image = Image.effect_noise((24, 24), 90).convert("RGB")
    options = {} if image_format in ("GIF", "BMP", "PPM") else {"exif": exif(TURNED, (0x9000, 7, 4, b"0232"))}
    good = encoded(image, image_format, **options)
    for _ in range(150):
        data = bytearray(good)
        for position in random.integers(0, min(len(data), 400), 3):
            data[position] = random.integers(0, 256)
        with strict_decoding(), contextlib.suppress(Refused):
            assert decode(bytes(data), 8)[0].shape == (8, 8, 3)
