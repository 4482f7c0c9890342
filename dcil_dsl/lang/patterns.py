"""Names by glob and by regular expression, in bounded time.

In:   the pattern of a selector as the recipe has it.
Out:  Glob and Regex, which say whether a whole name matches.
Not:  no layers; plan/select.py has them.
"""

from __future__ import annotations

import math
import re
import time

SECONDS = 1.0  # of processor time for one regular expression on all names of a model
MOST_REPEATS = 1_000_000  # that the counts of one expression multiply to; memory grows with them

_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
# A piece of an expression: escaped, a comment, a set, a count, another sign.
_PIECE = re.compile(
    r"\\.|\(\?#[^)]*\)|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?:\d+,?\d*|,\d*)\}|.", re.DOTALL
)


class Glob:
    """`*` any characters of one name, `**` of any names, `?` one character of a name.

    All places of the pattern that a name's beginning can lead to are followed at once, as bits of
    one number, so nothing is tried twice.
    """

    def __init__(self, pattern: str):
        signs = [one if len(one) < 3 else "**" for one in re.findall(r"\*+|.", pattern, re.DOTALL)]
        self.pattern, self.end = pattern, 1 << len(signs)
        self.literal: dict[str, int] = {}
        self.single = self.stars = self.doubles = 0
        for place, sign in enumerate(signs):
            bit = 1 << place
            if sign == "?":
                self.single |= bit
            elif sign in ("*", "**"):
                self.stars |= bit
                self.doubles |= bit if sign == "**" else 0
            else:
                self.literal[sign] = self.literal.get(sign, 0) | bit
        pieces = re.split(r"[*?]+", pattern)
        self.is_exact = len(pieces) == 1
        self.prefix = pieces[0]
        self.longest = max(pieces, key=len)

    def matches(self, name: str) -> bool:
        if self.longest not in name:
            return False
        places = self._past_stars(1)
        for sign in name:
            moved = places & self.literal.get(sign, 0)
            if sign == ".":
                stay = places & self.doubles
            else:
                moved |= places & self.single
                stay = places & self.stars
            places = self._past_stars(moved << 1 | stay)
            if not places:
                return False
        return bool(places & self.end)

    def _past_stars(self, places: int) -> int:
        """No two stars are neighbours, so one step is enough."""
        return places | (places & self.stars) << 1


class TooSlow(Exception):
    """A regular expression did not end in SECONDS."""


class Regex:
    """A regular expression of Python, matched by an engine that can be stopped.

    ValueError, with the reason, for one that is not valid.
    """

    def __init__(self, pattern: str):
        import regex

        try:
            re.compile(pattern)  # what is valid is Python's own; the engine has more words
            counts = [max(int(n or 1) for n in found) for found in _COUNTS.findall(pattern)]
            if math.prod(max(1, count) for count in counts) > MOST_REPEATS:
                raise ValueError("its counts multiply to too many repeats")
            self.compiled = regex.compile(_PIECE.sub(_as_in_python, pattern))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise ValueError(getattr(error, "msg", None) or "it is too large") from None
        self.left = SECONDS

    def matches(self, name: str) -> bool:
        """Whether the whole name matches; TooSlow where all names together took too long."""
        start = time.process_time()
        try:
            found = self.compiled.fullmatch(name, timeout=max(self.left, 0.001))
        except (TimeoutError, MemoryError):
            raise TooSlow from None
        self.left -= time.process_time() - start
        if self.left <= 0:
            raise TooSlow
        return found is not None


def _as_in_python(piece: re.Match) -> str:
    """`{` and `[` where Python reads them as themselves, and the engine as words of its own."""
    text = piece[0]
    if text == "{":
        return r"\{"
    if text.startswith("{,"):
        return "{0" + text[1:]
    if text[0] == "[" and len(text) > 1:
        return "[" + re.sub(
            r"\\.|\[",
            lambda one: one[0].replace("[", r"\[", len(one[0]) == 1),
            text[1:],
            flags=re.DOTALL,
        )
    return text
