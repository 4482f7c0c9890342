"""One word with its settings: what every class of the vocabulary is.

In:   the arguments of a call, evaluated (lang/values.py).
Out:  a validated, frozen value.
Not:  no word itself; lang/vocabulary.py has those of the language, kinds.py what a word of
      another package is.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Word(BaseModel):
    """A word with settings. Unknown settings are errors; values never change after.

    `positional`: how many settings may be given without their names, from the first on.
    `bare`: written without parentheses where no setting is given.
    """

    # Built when first used: one recipe uses a third of the words, and `dcil check` is quick.
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, strict=True, defer_build=True
    )
    positional: ClassVar[int] = 0
    bare: ClassVar[bool] = False

    @property
    def called(self) -> str:
        """The word as a recipe writes it, of those that are spelt like their class."""
        return type(self).__name__.lower()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that its settings name, in the order of the settings."""
        named = (n for n, info in type(self).model_fields.items() if "path" in info.metadata)
        return tuple(path for name in named if (path := getattr(self, name)) is not None)


LARGEST = 3e38  # what float32 holds, in which weights are moved
Factor = Annotated[float, Field(gt=0, le=LARGEST)]
FactorOrZero = Annotated[float, Field(ge=0, le=LARGEST)]
LayersName = Annotated[str, "layers"]  # what a `layers` definition names
PathName = Annotated[str, "path"]  # one of the paths that `mix` declares, written without quotes
# A path whose gradient is taken, at the view that it sees. None: the deployed one.
ScoredPath = Annotated[str | None, "path"]
# The decay of a moving average over the steps, in place of the last value or the sum.
Average = Annotated[float | None, Field(gt=0, lt=1)]
