"""``python -m emoreg``."""

from emoreg.cli.main import main

main()
