"""The text of a recipe and places in it; lines and columns count from 1, offsets from 0."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """The text of one recipe.

    name    its path, or `<recipe>`
    folder  the folder to which paths in the text are relative; None is the current folder
    """

    text: str = field(repr=False)
    name: str = "<recipe>"
    folder: Path | None = field(default=None, compare=False, repr=False)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0] + [i + 1 for i, character in enumerate(self.text) if character == "\n"]

    def position(self, offset: int) -> tuple[int, int]:
        """The line and column of an offset, both from 1."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, without its line end."""
        starts = self._line_starts
        stop = starts[number] if number < len(starts) else len(self.text)
        return self.text[starts[number - 1] : stop].rstrip("\r\n")


@dataclass(frozen=True)
class Span:
    """Characters start..stop of a source, stop excluded."""

    source: Source
    start: int
    stop: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def end_line(self) -> int:
        return self.source.position(self.stop)[0]

    @property
    def end_column(self) -> int:
        return self.source.position(self.stop)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.stop]

    def to(self, other: Span) -> Span:
        """From the start of this span to the stop of another in the same source."""
        return Span(self.source, self.start, other.stop)

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"
