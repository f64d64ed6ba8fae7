"""A study's ``study.json``, read back."""

from __future__ import annotations

import json
from typing import Any

from emoreg.config import StudyConfig, from_json
from emoreg.errors import ConfigError, StorageError
from emoreg.storage.files import Files


def read_written(files: Files) -> tuple[StudyConfig, dict[str, Any]]:
    """A study as its ``study.json`` has it: its configuration, and the whole content.

    Raises:
        ConfigError: where there is none.
        StorageError: where it cannot be read.
    """
    try:
        content = json.loads(files.read("study.json").to_pybytes())
        return from_json(StudyConfig, content["config"]), content
    except FileNotFoundError as error:
        raise ConfigError(
            f"a study is a folder with study.json, but {files.uri!r} has none: see `ls` of your storage"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"study.json must be as emoreg wrote it, but that of {files.uri!r} cannot be read ({error}): read it with the "
            "emoreg that wrote it, or move it away and run the study again, which writes it anew"
        ) from error
