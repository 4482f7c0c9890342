"""What a recipe does not need: a folder each, with its own README. Core imports none of it."""
