"""Data sets that have a name and need no files: drawn, or of scikit-learn."""
