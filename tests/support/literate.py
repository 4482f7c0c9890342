"""The cases of the literate tests in tests/errors/*.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent / "errors"


MARK = re.compile(r"(?:error|warning): \[([EW]\d\d\d)\]")


def cases(page: str):
    """(recipe, drawing or None) for each block of a page; a drawing follows its block."""
    text = (HERE / page).read_text()
    for match in re.finditer(r"```prune\n(.*?)```", text, re.DOTALL):
        rest = text[match.end() :]
        drawing = re.match(r"(?:(?!```).)*?```(\w+)\n(.*?)```", rest, re.DOTALL)
        drawn = drawing[2] if drawing and drawing[1] == "text" else None
        name = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        yield pytest.param(match[1], drawn, id=name)


def told(text: str) -> list[tuple[int, str]]:
    """(line, code) of every mark in a recipe."""
    return sorted(
        (line, code) for line, row in enumerate(text.splitlines(), 1) for code in MARK.findall(row)
    )
