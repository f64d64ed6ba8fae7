"""What a run of a study makes of errors, without running one."""

from __future__ import annotations

import errno

import pytest
from ray.tune import TuneError

from emoreg.errors import StorageError
from emoreg.tuning.study import _own_errors
from tests.helpers.studies import tiny_study


def wrapped(cause: Exception) -> None:
    """Tune raises its own while it handles what a callback raises."""
    try:
        raise cause
    except Exception as error:
        raise TuneError("a callback failed") from error


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EMFILE, errno.ENOSPC])
def test_no_error_of_the_operating_system_is_a_traceback(number: int) -> None:
    told = r"^Mend .* run the same command again.*records/trials\.parquet"
    with pytest.raises(StorageError, match=told), _own_errors(tiny_study()):
        wrapped(OSError(number, "no", "records/trials.parquet"))


def test_a_fault_in_code_is_one() -> None:
    with pytest.raises(TuneError, match="a callback failed"), _own_errors(tiny_study()):
        wrapped(KeyError("a fault in code"))
