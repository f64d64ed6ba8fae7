"""The readers that come with emoreg, a file for each source of images: importing them puts them into ``IMAGE_SETS``."""

from emoreg.data.readers import cifar, digits, fer2013, folder, oasis, openmoji, parquet  # noqa: F401
