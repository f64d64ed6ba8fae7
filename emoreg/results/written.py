"""What lies in a study's folder, read from wherever that is: ``study.json``, and the tables of the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from emoreg.config import StudyConfig, from_json
from emoreg.errors import ConfigError, StorageError
from emoreg.results.tables import read_table
from emoreg.storage.files import Files
from emoreg.storage.sealed import unseal

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenStudy:
    """What a study's ``study.json`` holds.

    Attributes:
        config: the study, without passwords.
        fingerprints: of its image sets, as ``Fingerprints`` writes them; and of the file of weights that it starts from.
        code: fingerprints of what its study file registers.
        trainer: versions of the code that decides numbers, by stage.
        versions: of emoreg, Python and the packages that make the numbers.
        git_commit: of emoreg's checkout, with ``+`` where it was changed; None outside of one.
        device: what trials were to run on.
        platform: of the machine that began the study.
    """

    config: StudyConfig
    fingerprints: tuple[tuple[str | int | None, ...], ...]
    code: Mapping[str, str]
    trainer: Mapping[str, int]
    versions: Mapping[str, str]
    git_commit: str | None
    device: str
    platform: str


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

    The fields of ``row_type``, a dataclass or named tuple, are the columns that are read; those that came later have defaults.

    Raises:
        StorageError: for a table that is damaged, or of another emoreg.
    """
    name = f"records/{table}.parquet"
    try:
        content = files.read(name)
    except FileNotFoundError:
        return None
    stored = read_table(pa.BufferReader(content), f"{name} of {files.uri!r}", list(row_type.__annotations__))
    columns = stored.column_names
    values = zip(*(stored[column].to_pylist() for column in columns), strict=True)  # far quicker than its dictionaries
    return [row_type(**dict(zip(columns, row, strict=True))) for row in values]
