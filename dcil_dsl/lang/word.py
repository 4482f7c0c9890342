"""One word with its settings: what every class of the vocabulary is.

In:   the arguments of a call, evaluated (values.py).
Out:  a validated, frozen value.
Not:  no word itself; vocabulary.py has them all.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict


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


LayersName = Annotated[str, "layers"]  # what a `layers` definition names
PathName = Annotated[str, "path"]  # one of the paths that `mix` declares, written without quotes
