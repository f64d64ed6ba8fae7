"""`emoreg run` with a driver that waits a few seconds for storage and database, where it would wait minutes.

python -m tests.integration.impatient_run STUDY ...
"""

from __future__ import annotations

import sys

from emoreg.storage import working_copy as storage
from emoreg.tuning import postgres as database

SECONDS = 3.0

if __name__ == "__main__":
    database.PATIENCE_SECONDS = storage.PATIENCE_SECONDS = SECONDS
    from emoreg import cli  # which brings the modules that take these settings over

    cli.main(["run", *sys.argv[1:]])
