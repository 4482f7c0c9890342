"""Recipes of SparseML as recipes of dcil: what `dcil import` does."""
