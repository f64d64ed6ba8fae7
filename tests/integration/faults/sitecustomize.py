"""Kills the process that is about to rename a finished temporary file to a wanted name: the moment between write and rename.

Python imports this module at its start where its folder is on PYTHONPATH. The names wanted are files of the folder that
EMOREG_TEST_FAULTS names; each kills once.
"""

import os
import signal
from typing import Any

_FOLDER = os.environ.get("EMOREG_TEST_FAULTS")

if _FOLDER is not None:
    _replace = os.replace

    def _replace_or_die(source: Any, target: Any, **kwargs: Any) -> None:
        try:
            os.unlink(os.path.join(str(_FOLDER), os.path.basename(target)))
        except FileNotFoundError:
            _replace(source, target, **kwargs)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = _replace_or_die
