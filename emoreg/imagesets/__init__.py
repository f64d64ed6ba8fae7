"""Image sets: readers by name, prepared Arrow files, splits, batches on the device, augmentation."""
