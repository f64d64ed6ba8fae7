"""Imported by the workers of a private Ray before they are given anything to do: what a trial needs is imported here."""

import os

from emoreg.tuning.private_ray import IS_LIGHT

if IS_LIGHT not in os.environ:
    import emoreg.tuning.trainable  # noqa: F401
