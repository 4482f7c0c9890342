"""Granularity: single weights, filters, channels, heads, blocks, N:M patterns.

In:   the settings of a rule.
Out:  one class for each kind of unit.
Not:  no cuts of a weight (plan/units.py), no masks (masking/units.py).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.word import Word


class Granularity(Word):
    """A granularity: how a weight falls into units that are kept or pruned as a whole.

    single  whether a unit is one weight
    axis    "out" or "in": a unit is everything of one output, or of one input, channel
    noun    the name of a unit
    """

    place: ClassVar[str] = "a granularity"
    single: ClassVar[bool] = False
    axis: ClassVar[str | None] = None
    noun: ClassVar[str] = ""

    @property
    def together(self) -> str:
        """What the units are, for messages: "filters"."""
        return f"{self.noun}s"


class Single(Granularity):
    """`weight`: each weight is a unit."""

    word: ClassVar[str] = "weight"
    bare: ClassVar[bool] = True
    single: ClassVar[bool] = True
    noun: ClassVar[str] = "weight"


class Filter(Granularity):
    """`filter`: all weights of an output channel, with the filters that it is tied to.

    ties  "residual": filters whose outputs meet in additions, products, norms, groups and heads
          are scored and pruned together; None: each filter is a unit
    """

    bare: ClassVar[bool] = True
    axis: ClassVar[str | None] = "out"
    noun: ClassVar[str] = "filter"
    ties: Literal["residual"] | None = "residual"

    @model_validator(mode="before")
    @classmethod
    def _before_ties(cls, values: Any, info: ValidationInfo) -> Any:
        """Plans that were written before filters had ties have none."""
        if info.mode == "json" and isinstance(values, dict):
            return {"ties": None, **values}
        return values


class Channel(Granularity):
    """`channel`: all weights of an input channel."""

    bare: ClassVar[bool] = True
    axis: ClassVar[str | None] = "in"
    noun: ClassVar[str] = "channel"


class Head(Granularity):
    """`head`: everything of an attention head, in all layers of the rule in that attention."""

    bare: ClassVar[bool] = True
    noun: ClassVar[str] = "head"


class Block(Granularity):
    """`block(4, 1)`: 4 outputs by 1 input, at one position of the kernel."""

    positional: ClassVar[int] = 2
    noun: ClassVar[str] = "block"
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]

    @property
    def together(self) -> str:
        return f"blocks of {count(self.height, 'output')} by {count(self.width, 'input')}"


class Pattern(Granularity):
    """n of every m consecutive input channels are kept; a target `2:4` brings it."""

    place: ClassVar[str] = "a granularity"  # no word of the language: see targets.NM
    single: ClassVar[bool] = True
    noun: ClassVar[str] = "weight"
    n: Annotated[int, Field(ge=1)]
    m: Annotated[int, Field(ge=2)]

    @property
    def together(self) -> str:
        return f"groups of {self.m} inputs"
