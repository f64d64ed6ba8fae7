"""Image sets: readers by name, prepared Arrow files, splits, batches on the device, augmentation."""

from emoreg.data.imageset import ImageSet, LoadImages, Split
from emoreg.data.prepare import load
from emoreg.data.readers import READERS, check
from emoreg.data.sheet import contact_sheet
from emoreg.data.splits import cut_validation

__all__ = ["READERS", "ImageSet", "LoadImages", "Split", "check", "contact_sheet", "cut_validation", "load"]
