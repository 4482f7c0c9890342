"""Scores, masks, and the views of a weight: tensors, without names and graphs."""
