"""Faults of storage, for the processes of a study under test.

Python imports this module at its start where its folder is on PYTHONPATH.

- EMOREG_TEST_FAULTS names a folder, whose files name others: a process that is about to rename a finished temporary file to
  one of those names is killed, in the moment between write and rename. Each name kills once.
- EMOREG_TEST_SLOW_CHECKPOINTS: seconds that storage takes over each checkpoint of a trial.
"""

import os
import signal
import time
from typing import Any

_FOLDER = os.environ.get("EMOREG_TEST_FAULTS")
_SLOW_SECONDS = float(os.environ.get("EMOREG_TEST_SLOW_CHECKPOINTS", "0"))

if _FOLDER is not None or _SLOW_SECONDS:
    _replace = os.replace

    def _replace_or_die(source: Any, target: Any, **kwargs: Any) -> None:
        if os.path.basename(target) == "trial.ckpt":
            time.sleep(_SLOW_SECONDS)
        try:
            os.unlink(os.path.join(_FOLDER or os.devnull, os.path.basename(target)))
        except (FileNotFoundError, NotADirectoryError):
            _replace(source, target, **kwargs)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = _replace_or_die
