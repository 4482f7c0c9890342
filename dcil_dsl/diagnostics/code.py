"""One code of a diagnostic.

In:   the tables codes_syntax.py, codes_recipe.py, codes_model.py.
Out:  Code.
Not:  no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, fill


@dataclass(frozen=True)
class Code:
    """`wrong` and `right` are statements of a recipe; what they leave out is any sound recipe."""

    code: str
    title: str
    meaning: str
    wrong: str = ""
    right: str = ""


def entry(code: str, title: str, meaning: str, wrong: str = "", right: str = "") -> Code:
    """A Code from indented text."""
    return Code(code, title, fill(" ".join(meaning.split()), 88), _text(wrong), _text(right))


def _text(example: str) -> str:
    return dedent(example).strip("\n").rstrip()
