"""``python -m emoreg``."""

from emoreg.cli import main

main()
