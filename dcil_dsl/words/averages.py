"""How several weights become one at the end of the run.

In:   the settings of `average` in `train`.
Out:  one class for each word.
Not:  no copying of weights (training/late_phase.py).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dcil_dsl.words.units import Time
from dcil_dsl.words.word import RESOLVED, FactorOrZero, LayersName, Word


class WeightAverage(Word):
    """`average = word(...)` of `train`."""

    place: ClassVar[str] = "an average of weights"


class LatePhase(WeightAverage):
    """`late_phase(norms, copies=10, start=60% run)`: copies of a few weights, averaged at the end.

    layers     what a `layers` definition names: the modules whose parameters are copied
    noise      how far the copies start apart, as a share of a weight's root mean square
    parameters the names of the copied parameters, once resolved
    gradients  whether all other weights learn from the sum or the mean of a round of copies
    training/late_phase.py has the rule. Von Oswald et al. 2021, arXiv:2007.12927.
    """

    word: ClassVar[str] = "late_phase"
    positional: ClassVar[int] = 1
    layers: LayersName
    copies: Annotated[int, Field(ge=2)] = 10
    start: Time = Time(0.6, "run")
    noise: FactorOrZero = 0.0
    gradients: Literal["sum", "mean"] = "sum"
    parameters: Annotated[tuple[str, ...], RESOLVED] = ()
