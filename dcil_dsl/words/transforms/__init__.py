"""What augmentations compute, for whole batches on a device. Imports torch; augment.py does late."""
