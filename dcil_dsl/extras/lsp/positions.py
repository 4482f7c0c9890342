"""Offsets in a text and the positions of the Language Server Protocol.

In:   a text; an offset, a span or a position.
Out:  the other one. A position counts lines from 0 and, in a line, UTF-16 code units.
Not:  no columns for people (diagnostics/source.py).
"""

from __future__ import annotations

import re
from bisect import bisect_right

from lsprotocol.types import Position, Range

from dcil_dsl.diagnostics import Span

_LINE_END = re.compile(r"\r\n|\r|\n")  # what ends a line in the protocol, and nothing else


class TextLines:
    """The lines of one text."""

    def __init__(self, text: str):
        self.text = text
        ends = list(_LINE_END.finditer(text))
        self.starts = [0, *(end.end() for end in ends)]
        self.stops = [*(end.start() for end in ends), len(text)]

    def position(self, offset: int) -> Position:
        """The position of an offset; one inside a line end is at the end of its line."""
        line = bisect_right(self.starts, offset) - 1
        before = self.text[self.starts[line] : min(offset, self.stops[line])]
        return Position(line, units(before))

    def offset(self, position: Position) -> int:
        """The offset of a position; beyond a line it is its end, as the protocol has it."""
        number = int(position.line)
        if number >= len(self.starts):
            return len(self.text)
        start, stop = self.starts[number], self.stops[number]
        line = self.text[start:stop]
        left = int(position.character)
        if line.isascii():
            return min(start + left, stop)
        for index, character in enumerate(line):
            if left <= 0:
                return start + index
            left -= 2 if ord(character) > 0xFFFF else 1
        return stop

    def range(self, start: int, stop: int) -> Range:
        return Range(self.position(start), self.position(stop))

    def of(self, span: Span) -> Range:
        """The range of a span of this text."""
        return self.range(span.start, span.stop)

    def all(self) -> Range:
        return self.range(0, len(self.text))


def units(text: str) -> int:
    """UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
