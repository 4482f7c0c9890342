"""Render diagnostics as text: in full with source lines and carets, or on one line each.

recipes/x.prune:44:27: error[E212]: unknown setting `momentun` of `sgd`
   |
44 |   optimizer = sgd(lr=0.2, momentun=0.9)
   |                           ^^^^^^^^
   |
help: did you mean `momentum`?
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS, MOST_ERRORS, Diagnostic, Label
from dcil_dsl.diagnostics.source import Source

WIDTH = 100  # columns of a source line that are shown
LEAD = 30  # columns kept before the caret where a line is clipped
NEAR = 10 * WIDTH  # characters read on each side of a place: one line may be the whole file
TAB = 4

Paint = Callable[[str, str], str]  # (text, color) -> text

_RED, _YELLOW, _BLUE, _CYAN, _BOLD, _END = (
    "\x1b[1;31m",
    "\x1b[1;33m",
    "\x1b[1;34m",
    "\x1b[1;36m",
    "\x1b[1m",
    "\x1b[0m",
)


def render(diagnostic: Diagnostic, color: bool = False) -> str:
    """The full form, several lines without a final line end."""
    paint = _painter(color)
    level = "error" if diagnostic.is_error else "warning"
    tone = _RED if diagnostic.is_error else _YELLOW
    head = paint(f"{level}[{diagnostic.code}]", tone)
    head += paint(f": {_flat(diagnostic.message)}", _BOLD)
    lines = [_place(diagnostic) + head]
    if diagnostic.span is not None:
        place = Label(diagnostic.span, diagnostic.label)
        lines += _snippets(place, diagnostic, tone, paint)
    if diagnostic.help is not None:
        first, *more = _lines(diagnostic.help)
        lines += [paint("help:", _CYAN) + f" {first}", *("      " + line for line in more)]
    return "\n".join(lines)


def render_concise(diagnostic: Diagnostic) -> str:
    """Exactly one line: `recipes/x.prune:44:27: E212 unknown setting ...`."""
    help = f" ({_flat(diagnostic.help)})" if diagnostic.help else ""
    return f"{_place(diagnostic)}{diagnostic.code} {_flat(diagnostic.message)}{help}"


def render_all(
    diagnostics: Iterable[Diagnostic], color: bool = False, concise: bool = False
) -> str:
    """All diagnostics, one after the other; those beyond MAX_ERRORS are only counted."""
    diagnostics = list(diagnostics)
    shown = [render_concise(d) if concise else render(d, color) for d in diagnostics[:MAX_ERRORS]]
    more = len(diagnostics) - MAX_ERRORS
    if more > 0:
        least = "at least " if len(diagnostics) >= MOST_ERRORS else ""
        shown.append(f"and {least}{more} more")
    return ("\n" if concise else "\n\n").join(shown)


@dataclass(frozen=True)
class _Mark:
    label: Label
    sign: str  # ^ under the place of the mistake, - under the places that explain it
    line: int
    stop: int  # offset, cut at the end of the first line


def _snippets(primary: Label, diagnostic: Diagnostic, tone: str, paint: Paint) -> list[str]:
    """The source lines of the primary and the secondary places, in the order of the text."""
    marks = [_mark(primary, "^")] + [_mark(label, "-") for label in diagnostic.others]
    gutter = len(str(max(mark.line for mark in marks)))
    bar = paint(" " * gutter + " |", _BLUE)
    lines = [bar]
    sources = list(dict.fromkeys(mark.label.span.source for mark in marks))
    for number, source in enumerate(sources):
        here = [mark for mark in marks if mark.label.span.source == source]
        here.sort(key=lambda mark: (mark.line, mark.label.span.start))
        if number:
            first = here[0].label.span
            where = f"{_name(source)}:{first.line}:{first.column}"
            lines.append(paint(" " * gutter + " --> ", _BLUE) + where)
        before = None
        for mark in here:
            if before is not None and mark.line > before + 1:
                lines.append(paint("...", _BLUE))
            lines += _shown(mark, mark.line != before, gutter, tone, paint)
            before = mark.line
    return [*lines, bar] if diagnostic.help is not None else lines


def _mark(label: Label, sign: str) -> _Mark:
    span = label.span
    line_stop = span.start + len(span.source.line(span.line)) - (span.column - 1)
    return _Mark(label, sign, span.line, max(span.start, min(span.stop, line_stop)))


def _shown(mark: _Mark, with_line: bool, gutter: int, tone: str, paint: Paint) -> list[str]:
    span = mark.label.span
    skipped = max(0, span.column - 1 - NEAR)
    before = span.column - 1 - skipped
    text = span.source.line(mark.line)[skipped : span.column + NEAR]
    left = _columns(text[:before])
    inside = _columns(text[: before + mark.stop - span.start]) - left
    line, left = _clipped(_expanded(text), left)
    # At least one sign, also at the end of a line, and none beyond the part that is shown.
    signs = max(1, min(inside, WIDTH + 6 - left))
    rows = []
    if with_line:
        rows.append(paint(f"{mark.line:>{gutter}} |", _BLUE) + (f" {line}" if line else ""))
    under = mark.sign * signs + (f" {_flat(mark.label.text)}" if mark.label.text else "")
    color = tone if mark.sign == "^" else _BLUE
    rows.append(paint(" " * gutter + " |", _BLUE) + " " + " " * left + paint(under, color))
    return rows


def _clipped(line: str, left: int) -> tuple[str, int]:
    """A part of a long line around a column, and the column in that part."""
    if _columns(line) <= WIDTH:
        return line, left
    start = max(0, left - LEAD) if left > WIDTH - LEAD else 0
    shown, column = "", 0
    for character in line:
        if start <= column < start + WIDTH:
            shown += character
        column += _columns(character)
    before, after = "..." if start else "", "..." if column > start + WIDTH else ""
    return before + shown + after, left - start + len(before)


def _columns(text: str) -> int:
    """The width of a text in a terminal."""
    return sum(_width(character) for character in _expanded(text))


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _expanded(text: str) -> str:
    """The text with tabs as spaces, and control characters as U+FFFD: they steer a terminal."""
    text = text.replace("\t", " " * TAB)
    return "".join(c if c.isprintable() or unicodedata.combining(c) else "\ufffd" for c in text)


def _flat(text: str) -> str:
    """The text on one line: a name in a recipe may hold line ends."""
    return _expanded(" ".join(text.splitlines()))


def _lines(text: str) -> list[str]:
    return [_expanded(line) for line in text.splitlines()] or [""]


def _name(source: Source) -> str:
    return _flat(source.name)


def _place(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    return f"{_name(span.source)}:{span.line}:{span.column}: " if span else ""


def _painter(color: bool) -> Paint:
    if not color:
        return lambda text, tone: text
    return lambda text, tone: f"{tone}{text}{_END}"
