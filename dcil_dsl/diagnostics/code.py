"""The record of one diagnostic code; the tables of codes are in codes_*.py."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, fill


@dataclass(frozen=True)
class Code:
    """A code's title, meaning and examples; `wrong` and `right` are excerpts of recipes."""

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
