"""The canonical text of a recipe, with its comments.

In:   a File (build.py), or the text of a recipe.
Out:  one fact a line, blocks in their order, `=`, `by` and `to` aligned. Formatting twice changes
      nothing; the formatted text parses to the same File.
Not:  no spelling of statements (unparse.py).

A comment on its own line stays before the statement that it preceded; one at the end of a line
stays there; one inside a statement that becomes a single line moves above it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from dcil_dsl.diagnostics.source import Source, Span
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import kind_of
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.unparse import key_pieces, statement_pieces

WIDTH = 100  # columns; a longer line is broken between pieces, four columns further in
REMARKS = 38  # the column where comments at the end of a line start, if the line is short
WIDEST = 32  # a key longer than this does not push its neighbours' `=` to the right

# The order of the blocks in a file. Among items only the order of rules means anything: both
# kinds of rule share a number, and sorting is stable.
ORDER = {
    "language": 0,
    "extends": 0,
    "recipe": 1,
    "let": 2,
    "model": 3,
    "data": 4,
    "layers": 5,
    "pruning": 6,
    "prune": 7,
    "keep": 7,
    "mix": 8,
    "train": 9,
    "expect": 10,
}


def format_text(text: str, name: str = "<recipe>") -> str:
    """The canonical text of a recipe; RecipeError where it does not parse."""
    return print_file(build_file(parse_text(Source(text, name))))


def print_file(file: ast.File) -> str:
    """The canonical text of a file, comments included; it ends with a line end."""
    units, tail = attach(file)
    units.sort(key=_order)
    rows = _block_rows(units, tail, indent=0)
    _place_remarks(rows)
    return "".join(row.line() + "\n" for row in rows)


def in_order(file: ast.File) -> tuple[ast.Item, ...]:
    """The items of a file in the order in which they are printed."""
    return tuple(sorted(file.items, key=lambda item: ORDER[kind_of(item)]))


def _order(unit: Unit) -> int:
    return ORDER[kind_of(unit.node)]


@dataclass
class _TextRow:
    """A statement without its block, a comment, a `}` or an empty line."""

    text: str
    remark: str = ""
    column: int = 0  # where the remark starts, counted from the start of `text`

    def line(self) -> str:
        return f"{self.text:<{self.column}}{self.remark}" if self.remark else self.text


def _block_rows(units: list[Unit], tail: list[Comment], indent: int) -> list[_TextRow]:
    """The rows of all statements of one block (or of the file, at indent 0)."""
    rows: list[_TextRow] = []
    for stretch in _stretches(units, top=indent == 0):
        rows += [_TextRow("")] if rows else []
        widths = _widths(stretch)
        for position, unit in enumerate(stretch):
            rows += _comment_rows(unit.above, indent, first=position == 0)
            if unit.above and unit.blank:
                rows.append(_TextRow(""))
            rows += _unit_rows(unit, widths, indent)
    return rows + _comment_rows(tail, indent, first=not rows)


def _comment_rows(comments: list[Comment], indent: int, first: bool) -> list[_TextRow]:
    """Comments on lines of their own; `first`: the empty line before them is there already."""
    rows: list[_TextRow] = []
    for comment in comments:
        if comment.blank and (rows or not first):
            rows.append(_TextRow(""))
        rows.append(_TextRow(" " * indent + comment.text))
    return rows


def _stretches(units: list[Unit], top: bool) -> list[list[Unit]]:
    """Statements with no empty line between them.

    They part at the author's empty lines, and in a file also between two kinds and around blocks.
    """
    stretches: list[list[Unit]] = []
    for unit in units:
        before = stretches[-1][-1] if stretches else None
        if before is None or unit.blank_above or (top and _apart(before, unit)):
            stretches.append([])
        stretches[-1].append(unit)
    return stretches


def _apart(before: Unit, unit: Unit) -> bool:
    return _order(before) != _order(unit) or _is_block(before) or _is_block(unit)


def _widths(stretch: list[Unit]) -> dict[str, int]:
    """How wide the keys of each kind are made in one stretch."""
    widths: dict[str, int] = {}
    for unit in stretch:
        kind, width = kind_of(unit.node), len(" ".join(key_pieces(unit.node)))
        if width <= WIDEST:
            widths[kind] = max(widths.get(kind, 0), width)
    return widths


def _unit_rows(unit: Unit, widths: dict[str, int], indent: int) -> list[_TextRow]:
    pieces = _padded(unit.node, widths)
    if not _is_block(unit):
        return [_TextRow(_fill(pieces + _braced(unit), indent), unit.remark)]
    inner = _block_rows(unit.children, unit.tail, indent + 2)
    head = _fill([*pieces, "{"], indent)
    if not inner and not unit.opening:
        return [_TextRow(head + "}", unit.remark)]
    return [_TextRow(head, unit.opening), *inner, _TextRow(" " * indent + "}", unit.remark)]


def _is_block(unit: Unit) -> bool:
    """Whether it takes several lines. A single fact, `{ init = fresh }`, stays on the line."""
    if unit.opening or unit.tail or kind_of(unit.node) == "mix":
        return True
    if not unit.children:
        return kind_of(unit.node) in ("recipe", "pruning", "train", "expect")
    child = unit.children[0]
    if len(unit.children) > 1 or child.above or child.remark:
        return True
    return len(" ".join(_padded(unit.node, {}) + _braced(unit))) > WIDTH - 2


def _braced(unit: Unit) -> list[str]:
    return ["{", *_padded(unit.children[0].node, {}), "}"] if unit.children else []


def _padded(node: ast.Statement, widths: dict[str, int]) -> list[str]:
    """The pieces of a statement, aligned with its neighbours."""
    pieces, width = statement_pieces(node), widths.get(kind_of(node), 0)
    if isinstance(node, ast.KeepNode) and "prune" in widths:
        return ["keep ", *pieces[1:]]  # as long as `prune`
    key = key_pieces(node)
    text = " ".join(key)
    if not key or len(text) > width:
        return pieces
    return [f"{text:<{width}} {pieces[len(key)]}", *pieces[len(key) + 1 :]]


def _fill(pieces: list[str], indent: int) -> str:
    """As many pieces a line as fit; the lines after the first stand four columns further in."""
    lines = [" " * indent + pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) > WIDTH:
            lines.append(" " * (indent + 4) + piece)
        else:
            lines[-1] += " " + piece
    return "\n".join(lines)


def _place_remarks(rows: list[_TextRow]) -> None:
    """Put the comments of neighbouring lines under each other, within WIDTH where they fit."""
    for commented, run in groupby(rows, key=lambda row: bool(row.remark)):
        if not commented:
            continue
        # Only the last line counts of a statement that takes several.
        before = [(row, row.text.rfind("\n") + 1) for row in run]
        column = max([REMARKS, *(len(row.text) - start + 2 for row, start in before)])
        for row, start in before:
            within = min(column, WIDTH - len(row.remark))
            row.column = start + max(within, len(row.text) - start + 2)


# -- comments and their statements -----------------------------------------------------------------


# Ignored before a keyword, and between the last node of a head and its `{`: nodes do not
# include the parentheses around them.
_IGNORED = re.compile(r"(?:[\s)]|#[^\n]*)*")


@dataclass(frozen=True)
class Comment:
    start: int
    text: str
    blank: bool = False  # an empty line stands before it


@dataclass
class Unit:
    """A statement with its comments. `blank`: an empty line is right before it."""

    node: ast.Statement
    blank: bool
    above: list[Comment] = field(default_factory=list)
    remark: str = ""  # the comment at the end of its last line
    opening: str = ""  # the comment behind its `{`
    children: list[Unit] = field(default_factory=list)
    tail: list[Comment] = field(default_factory=list)  # the comments before its `}`

    @property
    def blank_above(self) -> bool:
        """Whether an empty line stands before all of it, comments included."""
        return self.above[0].blank if self.above else self.blank


def attach(file: ast.File) -> tuple[list[Unit], list[Comment]]:
    """The statements of a file with their comments, and the comments after the last one.

    A file that link.py has merged has no comments: their places are in one source only.
    """
    text = file.source.text
    nodes: list[ast.Statement] = [_head("language", file.language, 0)]
    if file.extends:
        nodes.append(_head("extends", file.extends, file.language.span.stop))
    nodes += file.items
    comments: list[Comment] = []
    if all(node.span.source is file.source for node in nodes):
        comments = [Comment(at, c.rstrip(), _blank(text, at)) for at, c in file.comments]
    return _gather(nodes, comments)


def _head(kind: str, value: ast.Literal, after: int) -> ast.HeadNode:
    span = value.span
    start = _after_ignored(span.source.text, after)
    return ast.HeadNode(span=Span(span.source, start, span.stop), kind=kind, value=value)


def _after_ignored(text: str, start: int) -> int:
    found = _IGNORED.match(text, start)
    return start if found is None else found.end()


def _gather(
    nodes: Sequence[ast.Statement], comments: Sequence[Comment]
) -> tuple[list[Unit], list[Comment]]:
    queue: deque[Comment] = deque(comments)
    units: list[Unit] = []
    for number, node in enumerate(nodes):
        text = node.span.source.text
        unit = Unit(node, _blank(text, node.span.start))
        while queue and queue[0].start < node.span.start:
            unit.above.append(queue.popleft())
        inside = []
        while queue and queue[0].start < node.span.stop:
            inside.append(queue.popleft())
        _share_out(unit, inside)
        following = nodes[number + 1].span.start if number + 1 < len(nodes) else len(text)
        if queue and queue[0].start < following:
            if "\n" not in text[node.span.stop : queue[0].start]:
                unit.remark = queue.popleft().text
        units.append(unit)
    return units, list(queue)


def _share_out(unit: Unit, inside: list[Comment]) -> None:
    """Give the comments inside a statement to its `{`, to its children, or to the line above."""
    text = unit.node.span.source.text
    opening = _opening(unit.node) if inside else len(text)
    for comment in inside:
        if comment.start < opening:
            # The first to move above the statement takes the empty line along.
            unit.above.append(Comment(comment.start, comment.text, unit.blank))
            unit.blank = False
    inside = [comment for comment in inside if comment.start > opening]
    children = children_of(unit.node)
    if inside and "\n" not in text[opening : inside[0].start]:
        if not children or inside[0].start < children[0].span.start:
            unit.opening = inside.pop(0).text
    unit.children, unit.tail = _gather(children, inside)


def children_of(node: ast.Statement) -> tuple[ast.Statement, ...]:
    """What stands between the braces of a statement; empty where it has none."""
    match node:
        case (
            ast.BlockNode(settings=inner)
            | ast.PruneNode(settings=inner)
            | ast.PathNode(settings=inner)
        ):
            return inner
        case ast.PrivateNode(settings=inner) | ast.Mix(items=inner) | ast.Expect(conditions=inner):
            return inner
    return ()


def _opening(node: ast.Statement) -> int:
    """Where the `{` of a statement stands; the end of the text if it has none."""
    text = node.span.source.text
    match node:
        case ast.BlockNode(kind=kind):
            head = node.name_span.stop if node.name_span else node.span.start + len(kind)
        case ast.PruneNode():
            head = node.head_span.stop
        case ast.PathNode():
            head = node.view.span.stop
        case ast.PrivateNode():
            head = node.selector.span.stop
        case ast.Mix() | ast.Expect():
            head = node.span.start + len(kind_of(node))
        case _:
            return len(text)
    head = _after_ignored(text, head)
    return head if text.startswith("{", head) else len(text)


def _blank(text: str, offset: int) -> bool:
    start = offset
    while start > 0 and text[start - 1].isspace():
        start -= 1
    return text.count("\n", start, offset) > 1
