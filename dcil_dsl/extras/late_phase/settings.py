"""What `late_phase` may be given: the numbers that its rule reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dcil_dsl.words.step import WeightAverage
from dcil_dsl.words.units import Time
from dcil_dsl.words.word import FactorOrZero


class LateSettings(WeightAverage):
    """The settings of the word, which the docstring of LatePhase explains."""

    copies: Annotated[int, Field(ge=2)] = 10
    start: Time = Time(0.6, "run")
    noise: FactorOrZero = 0.0
    gradients: Literal["sum", "mean"] = "sum"
