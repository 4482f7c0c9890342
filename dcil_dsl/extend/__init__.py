"""New words: what a class has to be so that a recipe can use it. docs/add_a_word.md shows how.

In:   a subclass of one of these, in a package that names it under the entry point `dcil.words`,
      or in this folder and its table (ours.py).
Out:  a word of the language: read, resolved, printed, computed, stored in plans and resumed.
Not:  nothing of torch is imported here, so that recipes are still checked without it.
"""

from __future__ import annotations

from dcil_dsl.extend.kinds import (
    GradientScore,
    Integrator,
    Loss,
    Penalty,
    Score,
    View,
    total,
)
from dcil_dsl.extend.word import PathName

__all__ = ["GradientScore", "Integrator", "Loss", "PathName", "Penalty", "Score", "View", "total"]
