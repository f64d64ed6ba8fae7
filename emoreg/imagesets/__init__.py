"""Image sets: readers by name, prepared Arrow files, splits, batches on the device, augmentation."""

from emoreg.imagesets.imageset import ImageSet, LoadImages, Split
from emoreg.imagesets.prepare import load
from emoreg.imagesets.readers import READERS, check
from emoreg.imagesets.sheet import contact_sheet
from emoreg.imagesets.splits import cut_validation

__all__ = ["READERS", "ImageSet", "LoadImages", "Split", "check", "contact_sheet", "cut_validation", "load"]
