"""Image sets: readers by name, prepared Arrow files, splits, batches on the device, augmentation."""

from emoreg.config.registry import IMAGE_SETS
from emoreg.data import readers as readers  # imported, emoreg's own are in the registry
from emoreg.data.image_set import ImageSet, LoadImages, Split
from emoreg.data.prepare import OnProgress, check, load
from emoreg.data.reader import ImageSetContents, ImageSetRequest, Item, Reader, image_set
from emoreg.data.sheet import contact_sheet
from emoreg.data.splits import cut_validation, parts

__all__ = [
    "IMAGE_SETS",
    "ImageSet",
    "ImageSetContents",
    "ImageSetRequest",
    "Item",
    "LoadImages",
    "OnProgress",
    "Reader",
    "Split",
    "check",
    "contact_sheet",
    "cut_validation",
    "image_set",
    "load",
    "parts",
]
