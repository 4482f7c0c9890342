"""Selectors before there is a model: patterns, and names of `layers` definitions.

In:   selectors with `let`s replaced, and the `layers` definitions.
Out:  the same selectors with every name replaced; E114, E206, E223, E226, W202. Glob and Regex,
      which match names of layers in bounded time.
Not:  no layers; plan/select.py has them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dcil_dsl.diagnostics import Diagnostics, Label
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.words.units import Ratio, Time

# -- patterns --------------------------------------------------------------------------------------


SECONDS = 1.0  # of processor time for one regular expression on all names of a model
MOST_REPEATS = 1_000_000  # that the counts of one expression multiply to; memory grows with them

_CODED = re.compile(r"\\[^dDwWsSbBAZ\W]")  # \x41, \101, or a reference to a group
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
# Signs that may mean the end of a line, what is written as numbers, flags and rare groups.
_SPECIAL = re.compile(_CODED.pattern + r"|[\x00-\x1f]|\(\?(?![:=!]|<[=!]|P<)")
_ENDS = {r"\A": "^", r"\Z": "$", r"\s": r"[^\S\n]", r"\D": r"[^\d\n]", r"\W": r"[^\w\n]"}
_ENDS_IN_SET = re.compile(r"(?<!\\)(?:\\\\)*\\[sDW]")
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

    def matches(self, name: str) -> bool:
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
            re.compile(pattern)  # Python decides what is valid; the engine accepts more
            counts = [max(int(n or 1) for n in found) for found in _COUNTS.findall(pattern)]
            if math.prod(max(1, count) for count in counts) > MOST_REPEATS:
                raise ValueError("its counts multiply to too many repeats")
            self.compiled = regex.compile(_PIECE.sub(_as_in_python, pattern))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise ValueError(getattr(error, "msg", None) or "it is too large") from None
        self.literals = _literals(pattern)
        self.pattern, self.left = pattern, SECONDS

    def matches(self, name: str) -> bool:
        """Whether the whole name matches; TooSlow where all names together took too long."""
        with self._limited() as timeout:
            return self.compiled.fullmatch(name, timeout=timeout) is not None

    def runs(self, lines: str) -> list[tuple[int, int]] | None:
        """Where the matching lines of a text lie, neighbours as one run; None if not known.

        One call of the engine in place of one for each line. Only for expressions of which no
        piece matches the end of a line or depends on where the text ends.
        """
        import regex

        pieces = [_as_in_a_line(piece) for piece in _PIECE.findall(self.pattern)]
        one = "".join(filter(None, pieces))
        if None in pieces or _SPECIAL.search(self.pattern):
            return None
        one = _PIECE.sub(_as_in_python, one)
        with self._limited() as timeout:
            found = regex.finditer(f"(?m)^(?>(?:{one})\n)++", lines, timeout=timeout)
            return [match.span() for match in found]

    @contextmanager
    def _limited(self) -> Iterator[float]:
        """The time that is left; TooSlow if it is used up."""
        start = time.process_time()
        try:
            yield max(self.left, 0.001)
        except (TimeoutError, MemoryError):
            raise TooSlow from None
        self.left -= time.process_time() - start
        if self.left <= 0:
            raise TooSlow


def _literals(pattern: str) -> tuple[str, ...]:
    """Strings that every match contains, as far as they are easily seen.

    Runs of ordinary characters outside of groups; none for patterns with alternatives, flags or
    characters written as numbers.
    """
    if "|" in pattern or "(?" in pattern or _CODED.search(pattern):
        return ()
    runs, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        is_escaped = len(piece) == 2 and piece[0] == "\\" and not piece[1].isalnum()
        if piece in ("*", "+", "?") or piece[0] == "{":
            runs[-1] = runs[-1][:-1]  # the repeated character may be missing
            runs.append("")
        elif depth or not (is_escaped or len(piece) == 1 and piece not in ".^$()[]}\\"):
            runs.append("")
        else:
            runs[-1] += piece[-1]
    return tuple(filter(None, runs))


def _as_in_a_line(piece: str) -> str:
    """A piece of an expression that does not match the end of a line."""
    if piece[0] == "[" and len(piece) > 1:
        if piece[1] == "^":
            return "[^\\n" + (piece[2:] if piece[2] != "]" else "\\" + piece[2:])
        return rf"(?:(?!\n){piece})" if _ENDS_IN_SET.search(piece) else piece
    return _ENDS.get(piece, piece)


def _as_in_python(piece: re.Match[str]) -> str:
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


# -- selectors -------------------------------------------------------------------------------------


def strip_wrapping(pattern: str) -> str:
    """A name without the `module.`, `_orig_mod.` and `.weight` of wrappers and state dicts."""
    while pattern.startswith(("module.", "_orig_mod.")):
        pattern = pattern.split(".", 1)[1]
    return pattern.removesuffix(".weight")


def patterns_of(selector: ast.Selector) -> Iterator[tuple[str, str]]:
    """The kind and text of each pattern in a selector."""
    match selector:
        case ast.ByGlob(pattern=pattern) if "*" in pattern or "?" in pattern:
            yield "glob", strip_wrapping(pattern)
        case ast.ByRegex(pattern=pattern):
            yield "re", pattern
        case ast.First(of=of) | ast.Last(of=of) | ast.Having(of=of):
            yield from patterns_of(of)
        case ast.Inside(of=of, scope=scope):
            yield from patterns_of(of)
            if "*" in scope or "?" in scope:
                yield "glob", strip_wrapping(scope)
        case ast.Union_(parts=parts):
            for part in parts:
                yield from patterns_of(part)
        case ast.Except(of=of, but=but):
            yield from patterns_of(of)
            yield from patterns_of(but)


# For suggestions only: a recipe may name any class.
TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Linear",
    "MultiheadAttention",
    "Embedding",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LayerNorm",
    "GroupNorm",
    "InstanceNorm2d",
)


MOST_PARTS = 100_000  # of the definitions that names stand for: each may double another
MAX_CHAIN = 100  # of parts in each other, of names that stand for names; walked by recursion


class Selectors:
    """Closes selectors and remembers which definitions were used."""

    def __init__(self, layers: dict[str, ast.Layers], found: Diagnostics):
        self.layers, self.found = layers, found
        self.used: set[str] = set()
        self.num_parts, self.depth = 0, 0

    def closed(self, selector: ast.Selector, within: tuple[str, ...] = ()) -> ast.Selector:
        """The selector without names; `within`: the definitions being looked into."""
        depth, self.depth = self.depth, self.depth + 1
        self.num_parts += bool(within)
        try:
            if within and (self.num_parts > MOST_PARTS or self.depth > MAX_CHAIN):
                raise RecursionError
            return self._closed(selector, within)
        finally:
            self.depth = depth

    def _closed(self, selector: ast.Selector, within: tuple[str, ...]) -> ast.Selector:
        match selector:
            case ast.ByName(name=name):
                return self._named(selector, name, within)
            case ast.ByRegex(pattern=pattern):
                self._pattern(selector, pattern)
            case ast.ByGlob(pattern=pattern) if not pattern.strip():
                self.found.add("E226", "an empty name matches no layer", selector.span)
            case ast.Having(of=of, conditions=conditions):
                for condition in conditions:
                    self._condition(condition)
                return replace(selector, of=self.closed(of, within))
            case ast.First(of=of) | ast.Last(of=of) | ast.Inside(of=of):
                return replace(selector, of=self.closed(of, within))
            case ast.Union_(parts=parts):
                return replace(selector, parts=tuple(self.closed(p, within) for p in parts))
            case ast.Except(of=of, but=but):
                return replace(selector, of=self.closed(of, within), but=self.closed(but, within))
        return selector

    def warn_unused(self) -> None:
        """W202 for each definition that no rule uses; errors in it are reported too."""
        for name, definition in self.layers.items():
            if name not in self.used:
                self.found.add("W202", f"`layers {name}` is never used", definition.name.span)
                self.closed(definition.selector, (name,))

    def _named(self, selector: ast.ByName, name: str, within: tuple[str, ...]) -> ast.Selector:
        if name not in self.layers:
            near = did_you_mean(name, [*self.layers, *TYPES])
            if name in ("all", "every", "everything"):
                near = '`"**"` selects every layer'
            self.found.add(
                "E223",
                f"no `layers {name}` is defined",
                selector.span,
                help=near or "types begin with a capital; names of layers are in quotes",
            )
            return selector
        self.used.add(name)
        if name in within:
            around = within[within.index(name) :]
            self.found.add(
                "E223",
                f"`layers {name}` is defined in terms of itself",
                selector.span,
                others=tuple(Label(self.layers[n].name.span, "through this") for n in around),
            )
            return selector
        try:
            return self.closed(self.layers[name].selector, (*within, name))
        except RecursionError:
            if len(within) > 1:  # reported at the first of them; warn_unused begins with one
                raise
            self.found.add(
                "E114",
                f"`{name}` is defined through too many other names",
                selector.span,
                help="write some of their selectors out",
            )
            self.found.stop()

    def _pattern(self, selector: ast.ByRegex, pattern: str) -> None:
        try:
            Regex(pattern)
        except ValueError as error:
            self.found.add(
                "E226", "this regular expression is not valid", selector.span, label=str(error)
            )

    def _condition(self, condition: ast.Condition) -> None:
        value = condition.value
        if not isinstance(value, ast.Literal) or isinstance(value.value, (Time, Ratio)):
            help = None
            if isinstance(value, ast.Name):
                help = f'a string is written `"{value.name}"`'
            self.found.add(
                "E206",
                f"`{condition.name.name}` of a layer is compared with a number or a string",
                value.span,
                help=help,
            )
        elif value.value is not BROKEN and isinstance(value.value, (str, bool, type(None))):
            if condition.compare not in ("==", "!="):
                self.found.add(
                    "E206",
                    f"`{condition.compare}` compares numbers",
                    condition.span,
                    help="write `==` or `!=`",
                )
