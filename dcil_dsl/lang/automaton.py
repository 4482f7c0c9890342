"""Match many patterns with many names in one walk along the names.

In:   globs and regular expressions as steps, and names.
Out:  for each pattern the names that it matches, and the names inside of those, as a set.
Not:  expressions with repeated groups, with looks other than `(?!...)` at the beginning, or with
      references: Regex in selectors.py matches those one by one.

Every pattern is one or more lines of steps, and each step one bit of one long number. The bits
that are set stand for the steps that the name may take next, so that one letter moves all patterns
with a few operations on that number (the extended Shift-And of Navarro and Raffinot 2002, section
4.2). Names with a common beginning share that part of the walk.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

MOST_LINES = 64  # that the alternatives of one expression multiply to
MOST_STEPS = 400  # of one expression, all lines together
MOST_DEPTH = 50  # groups in each other; read by recursion
AT_ONCE = 40_000  # steps in one number
FEW = 64  # ends are taken out of a number one by one


class LetterStep(NamedTuple):
    """One letter of a name.

    letter    a regular expression of one letter
    optional  it may be missing
    repeated  it may come again
    """

    letter: str
    optional: bool = False
    repeated: bool = False


Line = tuple[LetterStep, ...]


class LinePattern(NamedTuple):
    """A pattern.

    lines   a name matches that one of them takes in whole
    unless  and whose beginning this one does not take
    """

    lines: tuple[Line, ...]
    unless: Line | None = None


_IN_GLOB = {
    "*": LetterStep("[^.]", optional=True, repeated=True),
    "**": LetterStep(r"[\s\S]", optional=True, repeated=True),
    "?": LetterStep("[^.]"),
}
# Escaped, a set, a count, another sign.
_SIGN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?:\d+,?\d*|,\d*)\}|.", re.DOTALL)
_LETTER = re.compile(r"\\[dDwWsS]|\\[^a-zA-Z0-9]|\[.+\]|[^\\^$|()*+?{]", re.DOTALL)
_NUMBERED = re.compile(r"\\[^dDwWsS\W]")  # in a set: what is written as a number, or by name


class _NotLines(Exception):
    """An expression is not a few lines of steps."""


def glob_lines(pattern: str) -> LinePattern:
    signs = [one if len(one) < 3 else "**" for one in re.findall(r"\*+|.", pattern, re.DOTALL)]
    return LinePattern(
        (tuple(_IN_GLOB.get(sign) or LetterStep(re.escape(sign)) for sign in signs),)
    )


def regex_lines(pattern: str) -> LinePattern | None:
    """The lines of a valid expression of Python; None if it has more than letters to repeat."""
    ignore_case = pattern.startswith("(?i)")
    signs = _SIGN.findall(pattern[4:] if ignore_case else pattern)
    # The whole name has to match, so these say nothing.
    if signs[:1] in (["^"], [r"\A"]):
        del signs[0]
    if signs[-1:] in (["$"], [r"\Z"]):
        del signs[-1]
    reader = _Reader(signs)
    try:
        unless = reader.not_ahead()
        lines = reader.alternatives()
    except _NotLines:
        return None
    if reader.place < len(signs):
        return None
    if ignore_case:
        lines, unless = [_of_any_case(line) for line in lines], unless and _of_any_case(unless)
    return LinePattern(tuple(lines), unless)


def _of_any_case(line: Line) -> Line:
    return tuple(step._replace(letter=f"(?i:{step.letter})") for step in line)


class _Reader:
    """Reads lines from the signs of an expression."""

    def __init__(self, signs: Sequence[str]):
        self.signs, self.place, self.depth = signs, 0, 0

    def not_ahead(self) -> Line | None:
        """The line of a `(?!...)` that stands here; the expression after it has no alternatives
        without it."""
        if list(self.signs[:3]) != ["(", "?", "!"]:
            return None
        self.place, self.depth = 3, 1
        lines = self.alternatives()
        self.place, self.depth = self.place + 1, 0  # past the end of the group
        if len(lines) > 1 or self._count() != (1, 1) or self._splits():
            raise _NotLines
        return lines[0]

    def _splits(self) -> bool:
        """Whether the rest has alternatives outside of groups."""
        depth = 0
        for sign in self.signs[self.place :]:
            depth += (sign == "(") - (sign == ")")
            if sign == "|" and not depth:
                return True
        return False

    def alternatives(self) -> list[Line]:
        lines: list[Line] = []
        own: list[Line] = [()]
        while self.place < len(self.signs):
            sign = self._next()
            if sign == ")":
                if not self.depth:
                    raise _NotLines
                self.place -= 1
                break
            if sign == "|":
                lines, own = lines + own, [()]
                continue
            part = self._group() if sign == "(" else self._letter(sign)
            if len(lines) + len(own) * len(part) > MOST_LINES:
                raise _NotLines
            own = [(*line, *more) for line in own for more in part]
            if (len(part) > 1 or len(part[0]) > 1) and sum(map(len, own)) > MOST_STEPS:
                raise _NotLines
        if sum(map(len, own)) > MOST_STEPS:
            raise _NotLines
        return lines + own

    def _next(self) -> str:
        sign = self.signs[self.place]
        self.place += 1
        return sign

    def _taken(self, *signs: str) -> bool:
        found = self.place < len(self.signs) and self.signs[self.place] in signs
        self.place += found
        return found

    def _group(self) -> list[Line]:
        if self._taken("?") and not self._taken(":") or self.depth == MOST_DEPTH:
            raise _NotLines
        self.depth += 1
        lines = self.alternatives()
        self.depth -= 1
        self.place += 1  # the end of the group, which a valid expression has
        least, most = self._count()
        if (least, most) not in ((1, 1), (0, 1)):
            raise _NotLines
        return lines if least else [*lines, ()]

    def _letter(self, sign: str) -> list[Line]:
        if not _LETTER.fullmatch(sign) or (sign[0] == "[" and _NUMBERED.search(sign)):
            raise _NotLines
        least, most = self._count()
        if max(least, most or 0) > MOST_STEPS:
            raise _NotLines
        steps = [LetterStep(sign)] * least
        if most is None:
            steps += [LetterStep(sign, optional=True, repeated=True)]
        else:
            steps += [LetterStep(sign, optional=True)] * (most - least)
        return [tuple(steps)]

    def _count(self) -> tuple[int, int | None]:
        """How often the part before may come, at least and at most."""
        if self.place == len(self.signs):
            return 1, 1
        sign = self.signs[self.place]
        least: int
        most: int | None
        if sign in ("*", "+", "?"):
            least, most = int(sign == "+"), 1 if sign == "?" else None
        elif sign[0] == "{" and len(sign) > 1:
            first, comma, last = sign[1:-1].partition(",")
            least = int(first or 0)
            most = int(last) if last else (None if comma else least)
        else:
            return 1, 1
        self.place += 1
        if self._taken("+"):  # keeps what it has: another meaning
            raise _NotLines
        self._taken("?")  # what it takes first does not matter for the whole name
        return least, most


# -- the walk --------------------------------------------------------------------------------------


def match_all(
    patterns: Mapping[str, LinePattern], names: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Each pattern with the set of names that it matches, bit i for name i.

    A name is also matched where the beginning of it up to a dot is.
    """
    alphabet = "".join(sorted(set("".join(names)))) if patterns else ""
    waiting: list[str] = []
    size = 0
    for place, (pattern, own) in enumerate(patterns.items(), 1):
        waiting.append(pattern)
        size += sum(len(line) + 1 for line in (*own.lines, own.unless or ()))
        if size > AT_ONCE or place == len(patterns):
            yield from _match({one: patterns[one] for one in waiting}, names, alphabet)
            waiting, size = [], 0


def _match(
    patterns: Mapping[str, LinePattern], names: Sequence[str], alphabet: str
) -> Iterator[tuple[str, int]]:
    whose = [pattern for pattern, own in patterns.items() for _ in own.lines]
    machine = _Machine(patterns.values(), alphabet)
    found = machine.walk(names)
    matched = dict.fromkeys(patterns, 0)
    if all(ends.bit_count() <= FEW for ends in found.values()):
        of_end = dict(zip(machine.ends, whose, strict=True))
        for place, name in enumerate(names):
            for end in _places(found[name]):
                matched[of_end[end]] |= 1 << place
    else:
        # Rows of 0 and 1 for each name become columns for each line, the last name first.
        rows = (machine.ends_in(found[name]) for name in reversed(names))
        for pattern, column in zip(whose, zip(*rows, strict=True), strict=True):
            matched[pattern] |= int("".join(column), 2)
    yield from matched.items()


class _Machine:
    """The steps of many lines as bits: a line's first step is its lowest bit, its end the next.

    The line `unless` of a pattern lies below the others, and begins again for good at its end.

    ends      of each other line, as the place of its bit
    takes     by letter the steps that take it
    repeated  steps that may come again
    optional  steps that may be missing
    guards    the ends of the lines `unless`
    guarded   all bits of the lines above them
    """

    def __init__(self, patterns: Iterable[LinePattern], alphabet: str):
        steps: list[LetterStep | None] = []  # None: the end of a line
        starts: list[int] = []
        guards: list[int] = []
        guarded: list[int] = []
        self.ends: list[int] = []
        for own in patterns:
            if own.unless is not None:
                starts.append(len(steps))
                steps += [*own.unless, _IN_GLOB["**"], None]
                guards.append(len(steps) - 1)
            begin = len(steps)
            for line in own.lines:
                starts.append(len(steps))
                steps += [*line, None]
                self.ends.append(len(steps) - 1)
            if own.unless is not None:
                guarded += range(begin, len(steps))
        self.size = len(steps)
        self.guards, self.guarded = _set_of(guards), _set_of(guarded)
        kinds = list(dict.fromkeys(steps))
        number = {kind: chr(place) for place, kind in enumerate(kinds)}
        text = "".join(map(number.__getitem__, reversed(steps)))  # a sign for each kind of step

        def bits(holds: Iterable[bool]) -> int:
            """The steps of the kinds for which it holds."""
            return int(text.translate(["1" if one else "0" for one in holds]), 2)

        self.optional = bits(step is not None and step.optional for step in kinds)
        self.repeated = bits(step is not None and step.repeated for step in kinds)
        letters = dict.fromkeys(step.letter for step in kinds if step)
        taken = {None: frozenset[str]()} | {one: _letters(one, alphabet) for one in letters}
        takes = [taken[step and step.letter] for step in kinds]
        self.takes = {sign: bits(sign in own for own in takes) for sign in alphabet}
        self.all_ends = _set_of(self.ends)
        self.start = self.past_optional(_set_of(starts))
        places = [self.size - 1 - end for end in self.ends]
        self._pick = itemgetter(*places, places[-1])  # of one place it would give no tuple

    def past_optional(self, places: int) -> int:
        """A carry runs from each place through the optional steps that follow it."""
        optional = self.optional
        return places | ((optional + (places & optional)) ^ optional)

    def ended(self, places: int) -> int:
        """The ends among these places, without those whose guard has ended."""
        ends = places & self.all_ends
        if not self.guards:
            return ends
        # A carry runs from the end of a guard through all bits of the lines above it.
        carried = self.guarded + ((places & self.guards) << 1)
        return ends & ~((carried ^ self.guarded) & self.guarded)

    def walk(self, names: Sequence[str]) -> dict[str, int]:
        """For each name the ends that it reaches, or its beginning up to a dot does."""
        found: dict[str, int] = {}
        takes, repeated = self.takes, self.repeated
        before = ""
        states = [self.start]  # after each letter of the name before
        reached = [0]  # the ends at the dots that lie before
        for name in sorted(set(names)):
            common = _common(before, name)
            del states[common + 1 :], reached[common + 1 :]
            for sign in name[common:]:
                places, ended = states[-1], reached[-1]
                reached.append(ended | self.ended(places) if sign == "." else ended)
                moved = places & takes[sign]
                states.append(self.past_optional(moved << 1 | moved & repeated))
            found[name] = reached[-1] | self.ended(states[-1])
            before = name
        return found

    def ends_in(self, places: int) -> tuple[str, ...]:
        """A 0 or 1 for the end of each line."""
        row: tuple[str, ...] = self._pick(format(places, f"0{self.size}b"))
        return row[:-1]


def _set_of(places: Iterable[int]) -> int:
    total = bytearray()
    for place in places:
        total.extend(bytes(max(0, place // 8 + 1 - len(total))))
        total[place // 8] |= 1 << place % 8
    return int.from_bytes(total, "little")


def _places(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _letters(letter: str, alphabet: str) -> frozenset[str]:
    """The letters of the alphabet that a step takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `[[` may come to mean something else one day
        return frozenset(re.findall(letter, alphabet))


def _common(first: str, second: str) -> int:
    """The length of the beginning that two names share."""
    for place, (one, other) in enumerate(zip(first, second)):
        if one != other:
            return place
    return min(len(first), len(second))
