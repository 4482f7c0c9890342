"""Which comment belongs to which statement.

In:   the statements of a file or a block, and the comments among them, in the order of the text.
Out:  Units: each statement with the comments above it, behind its `{`, at its end and before
      its `}`, and where the author left an empty line.
Not:  nothing is printed and nothing is reordered; fmt.py does both.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dcil_dsl.diagnostics.source import Span
from dcil_dsl.lang import ast

# What may stand before a keyword, or between the last node of a head and its `{`: nodes do not
# include the parentheses around them.
_IGNORED = re.compile(r"(?:[\s)]|#[^\n]*)*")


@dataclass(frozen=True)
class Head:
    """`language 1` or `extends "..."`, which are fields of File and not nodes of their own."""

    kind: str
    value: ast.Literal
    span: Span


@dataclass(frozen=True)
class Comment:
    start: int
    text: str
    blank: bool = False  # an empty line stands before it


@dataclass
class Unit:
    """A statement and what is said about it. `blank`: an empty line stands right before it."""

    node: object
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

    A file that link.py has put together out of several texts has no comments: their places
    are in one text only.
    """
    text = file.source.text
    nodes = [_head("language", file.language, 0)]
    if file.extends:
        nodes.append(_head("extends", file.extends, file.language.span.stop))
    nodes += file.items
    comments = []
    if all(node.span.source is file.source for node in nodes):
        comments = [Comment(at, c.rstrip(), _blank(text, at)) for at, c in file.comments]
    return _gather(nodes, comments)


def _head(kind: str, value: ast.Literal, after: int) -> Head:
    span = value.span
    start = _IGNORED.match(span.source.text, after).end()
    return Head(kind, value, Span(span.source, start, span.stop))


def kind_of(node: object) -> str:
    """The word a statement begins with; `setting` and `condition` begin with none."""
    return node.kind if isinstance(node, ast.Block | Head) else type(node).__name__.lower()


def _gather(nodes: Sequence, comments: Sequence[Comment]) -> tuple[list[Unit], list[Comment]]:
    queue, units = deque(comments), []
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


def children_of(node: object) -> tuple:
    """What stands between the braces of a statement; empty where it has none."""
    match node:
        case ast.Block(settings=inner) | ast.Prune(settings=inner) | ast.Path(settings=inner):
            return inner
        case ast.Private(settings=inner) | ast.Mix(items=inner) | ast.Expect(conditions=inner):
            return inner
    return ()


def _opening(node: object) -> int:
    """Where the `{` of a statement stands; the end of the text if it has none."""
    text = node.span.source.text
    match node:
        case ast.Block(kind=kind):
            head = node.name_span.stop if node.name_span else node.span.start + len(kind)
        case ast.Prune():
            head = node.head_span.stop
        case ast.Path():
            head = node.view.span.stop
        case ast.Private():
            head = node.selector.span.stop
        case ast.Mix() | ast.Expect():
            head = node.span.start + len(kind_of(node))
        case _:
            return len(text)
    head = _IGNORED.match(text, head).end()
    return head if text.startswith("{", head) else len(text)


def _blank(text: str, offset: int) -> bool:
    start = offset
    while start > 0 and text[start - 1].isspace():
        start -= 1
    return text.count("\n", start, offset) > 1
