"""What augmentations compute, for whole batches on a device; augment.py imports it late."""
