"""Paths that compute with their kept weights alone: `compute = kept`."""
