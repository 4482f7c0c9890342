"""The words of the language: one class each, with its settings and its effect.

Other packages subclass these kinds and declare their words under the entry point `dcil.words`;
docs/add_a_word.md shows how. A recipe reads, resolves, prints, computes, stores and resumes such a
word as it does the words of this folder.
"""

from __future__ import annotations

from dcil_dsl.words.losses import Loss, Penalty
from dcil_dsl.words.schedules import Ramp, Schedule
from dcil_dsl.words.scores import GradientScore, Score
from dcil_dsl.words.step import Integrator, total
from dcil_dsl.words.views import View
from dcil_dsl.words.word import PathName

__all__ = [
    "GradientScore",
    "Integrator",
    "Loss",
    "PathName",
    "Penalty",
    "Ramp",
    "Schedule",
    "Score",
    "View",
    "total",
]
