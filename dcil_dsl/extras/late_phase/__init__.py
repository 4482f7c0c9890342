"""Copies of a few weights take turns late in the run: `average = late_phase(...)`."""
