"""`emoreg run` with a driver that waits a few seconds for storage and database, where it would wait minutes.

python -m tests.integration.impatient_run STUDY ...
"""

from __future__ import annotations

import sys

from emoreg.storage import retry

SECONDS = 3.0

if __name__ == "__main__":
    retry.PATIENCE_SECONDS = SECONDS
    from emoreg.cli.main import main

    sys.exit(main(["run", *sys.argv[1:]]))
