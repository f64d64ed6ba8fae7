"""Faults of storage, for the processes of a study under test.

Python imports this module at its start where its folder is on PYTHONPATH.

- EMOREG_TEST_FAULTS names a folder of exact moments. A file there that is called as a stored file, or only by its extension,
  has a process killed that is about to rename a finished temporary file to it, between write and rename; and one called
  ``optuna.journal``, a process that has written half a line of that. Each kills once, after as many writes as there are
  files of the same name with ``~1``, ``~2`` and so on behind it.
- EMOREG_TEST_SLOW_CHECKPOINTS: seconds that storage takes over each checkpoint of a trial.
"""

import os
import signal
import time
from typing import Any

_FOLDER = os.environ.get("EMOREG_TEST_FAULTS")
_SLOW_SECONDS = float(os.environ.get("EMOREG_TEST_SLOW_CHECKPOINTS", "0"))
_JOURNAL = "optuna.journal"
_HALF_A_LINE = 9


def _is_due(name: str) -> bool:
    """Whether the moment of this file has come; each write of it uses one file of the folder up."""
    for moment in (name, os.path.splitext(name)[1]):
        waiting = sorted((found for found in os.listdir(_FOLDER) if found.partition("~")[0] == moment), reverse=True)
        for found in waiting:
            try:
                os.unlink(os.path.join(_FOLDER or "", found))
            except FileNotFoundError:  # another process was faster
                continue
            return found == moment
    return False


if _FOLDER is not None or _SLOW_SECONDS:
    _replace, _fsync = os.replace, os.fsync

    def _replace_or_die(source: Any, target: Any, **kwargs: Any) -> None:
        name = os.path.basename(target)
        if name == "trial.ckpt":
            time.sleep(_SLOW_SECONDS)
        if _FOLDER is not None and _is_due(name):
            os.kill(os.getpid(), signal.SIGKILL)
        _replace(source, target, **kwargs)

    def _fsync_or_die(file: int) -> None:
        path = "" if _FOLDER is None else os.readlink(f"/proc/self/fd/{file}")
        if os.path.basename(path) == _JOURNAL and _is_due(_JOURNAL):
            os.truncate(path, os.path.getsize(path) - _HALF_A_LINE)
            os.kill(os.getpid(), signal.SIGKILL)
        _fsync(file)

    os.replace, os.fsync = _replace_or_die, _fsync_or_die
