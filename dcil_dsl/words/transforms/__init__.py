"""The computations of augmentations, for batches on a device; augment.py imports them late."""
