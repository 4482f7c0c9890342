"""Values that say what is wrong with a recipe, and the one place that draws them."""

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
