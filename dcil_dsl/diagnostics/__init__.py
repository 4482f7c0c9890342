"""Diagnostics of recipes as values, their codes, and their layout as text."""

from dcil_dsl.diagnostics.diagnostic import (
    Diagnostic,
    Diagnostics,
    InputError,
    Label,
    RecipeError,
    RecipeWarning,
)
from dcil_dsl.diagnostics.source import Source, Span

__all__ = [
    "Diagnostic",
    "Diagnostics",
    "InputError",
    "Label",
    "RecipeError",
    "RecipeWarning",
    "Source",
    "Span",
]
