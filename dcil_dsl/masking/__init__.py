"""Tensors: scores, masks, and the views of a weight. Knows no names and no graphs."""
