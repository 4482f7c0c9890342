"""Diagnostics of recipes as values, their codes, and their layout as text."""

from dcil_dsl.diagnostics.diagnostic import Diagnostic, Label
from dcil_dsl.diagnostics.errors import Diagnostics, InputError, RecipeError, RecipeWarning
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
