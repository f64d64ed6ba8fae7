"""What an installation without the extra `report` lacks: plotly, kaleido, jinja2 and matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emoreg.errors import ConfigError


@contextmanager
def report_extra() -> Iterator[None]:
    """Stand around imports of what the extra brings.

    Raises:
        ConfigError: where it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"Install the report extra: pip install 'emoreg[report]' (a report needs {error.name})") from error
