"""Diagnostics as values: a mistake, its places in the recipe, a remedy.

In:   what a stage found wrong.
Out:  Diagnostic values, with messages of bounded length.
Not:  no layout (render.py), no exceptions (errors.py), no meaning of the codes (codes.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcil_dsl.diagnostics.source import Span

MAX_ERRORS = 20  # shown in full; of the rest the count is given
MOST_ERRORS = 100  # the stage ends here: a file with more mistakes was generated, not written
LONGEST_WORD, LONGEST_TEXT = 200, 1000  # characters of a message; names in recipes have no limit
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


@dataclass(frozen=True)
class Label:
    """A second place that explains the first."""

    span: Span
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", bounded(self.text))


@dataclass(frozen=True)
class Diagnostic:
    """One mistake. `message` stands alone on one line: lower case, no period.

    code   E1xx syntax, E2xx the recipe alone, E3xx the recipe against the model,
           E4xx the graph; W the same for warnings.
    label  what is wrong at `span`; `others` are the places that explain why.
    help   a remedy, preferably something to type.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    others: tuple[Label, ...] = ()
    help: str | None = None

    def __post_init__(self) -> None:
        for name in ("message", "label", "help"):
            object.__setattr__(self, name, bounded(getattr(self, name)))

    @property
    def is_error(self) -> bool:
        return self.code.startswith("E")


def bounded(text: str | None) -> str | None:
    """A message with long words, such as generated names, and a long end cut off."""
    if text is None or len(text) <= LONGEST_WORD:
        return text
    text = _LONG_WORD.sub(lambda word: f"{word[0][: LONGEST_WORD - 3]}...", text)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
