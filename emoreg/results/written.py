"""What lies in a study's folder, read from wherever that is: ``study.json``, and the tables of the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from emoreg.config import CONFIRM, StudyConfig, from_json
from emoreg.config.trial import Precision
from emoreg.errors import ConfigError, StorageError
from emoreg.results.tables import check_columns, read_table
from emoreg.storage.files import Files
from emoreg.storage.sealed import unseal
from emoreg.storage.working_copy import join

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageAccount:
    """How one of a study's image sets is cut, and what its parts have in common.

    Copies are pairs of numbers: images that are exactly elsewhere too, as they are or mirrored; and those that are all but the
    same (None where there are too many images to look for them).

    Attributes:
        role: task, stimuli, neutral or relabelled.
        name: of the set.
        num_train: images trained on.
        num_validation: images held out of the training split.
        num_test: images of the test split.
        num_groups: groups of images that belong together, in the training split; None where each stands by itself.
        test_copies: of test images in the training split.
        validation_copies: of validation images among those trained on.
        task_copies: of the task's test images in the training split; None for the task's own.
        num_outputs: classes, or real-valued targets.
    """

    role: str
    name: str
    num_train: int
    num_validation: int
    num_test: int
    num_groups: int | None
    test_copies: tuple[int, int | None]
    validation_copies: tuple[int, int | None]
    task_copies: tuple[int, int | None] | None = None
    num_outputs: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Compilation:
    """What compile "auto" means for a backbone in a study.

    Attributes:
        compiled: whether torch compiles its training steps.
        reason: why or why not, in words.
    """

    compiled: bool
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenStudy:
    """What a study's ``study.json`` holds.

    Attributes:
        config: the study, without passwords.
        fingerprints: of its image sets, and of the file of weights that it starts from: a source's parts, then its fingerprint.
        code: fingerprints of what its study file registers.
        trainer: versions of the code that decides numbers, by stage.
        versions: of emoreg, Python and the packages that make the numbers.
        git_commit: of emoreg's checkout, with ``+`` where it was changed; None outside of one.
        device: what trials were to run on.
        platform: of the machine that began the study.
        images: how its image sets are cut.
        precisions: what precision "auto" means on a CPU, by backbone, where that was decided.
        compilations: what compile "auto" means, by backbone, where that was decided.
    """

    config: StudyConfig
    fingerprints: tuple[tuple[str | int | None, ...], ...]
    code: Mapping[str, str]
    trainer: Mapping[str, int]
    versions: Mapping[str, str]
    git_commit: str | None
    device: str
    platform: str
    images: tuple[ImageAccount, ...] = ()
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    compilations: Mapping[str, Compilation] = field(default_factory=dict)


def read_written(files: Files) -> WrittenStudy:
    """Read the ``study.json`` of a study.

    Raises:
        ConfigError: where there is none.
        StorageError: where it cannot be read.
    """
    try:
        return from_json(WrittenStudy, unseal(files.read("study.json")))
    except FileNotFoundError as error:
        raise ConfigError(
            f"Name the folder or URI of a study that was run: {files.uri!r} has no study.json (see `ls` of your storage)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"Read {files.uri!r} with the emoreg that wrote it, or move its study.json away and run the study again, which "
            f"writes it anew: study.json must be as this emoreg writes it, but it cannot be read ({error})"
        ) from error


def stored_rows(files: Files, table: str, row_type: type[T]) -> list[T] | None:
    """The rows of ``records/TABLE.parquet`` in a study's folder; None where there is no such table.

    The fields of ``row_type``, a dataclass, are the columns that are read; those that came later have defaults.

    Raises:
        StorageError: for a table that is damaged, or of another emoreg.
    """
    name = f"records/{table}.parquet"
    try:
        content = files.read(name)
    except FileNotFoundError:
        return None
    stored = read_table(pa.BufferReader(content), f"{name} of {files.uri!r}", list(row_type.__annotations__))
    check_columns(stored, row_type, f"{name} of {files.uri!r}")
    columns = stored.column_names
    values = zip(*(stored[column].to_pylist() for column in columns), strict=True)  # far quicker than its dictionaries
    return [row_type(**dict(zip(columns, row, strict=True))) for row in values]


def written_of(config: StudyConfig, files: Files) -> Iterator[WrittenStudy]:
    """What is written of a study, and before that, of a confirmation, what is of its search; nothing where none has begun.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    homes = [files]
    if config.name.endswith(CONFIRM):
        homes.insert(0, Files(join(config.storage, config.name.removesuffix(CONFIRM))))
    yield from (read_written(home) for home in homes if home.exists("study.json"))
