"""Walks of the syntax tree: what stands at an offset, where a name is defined and used.

In:   a File of one text.
Out:  nodes, innermost first; Occurrence values.
Not:  no meaning of words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from dcil_dsl.diagnostics import Span
from dcil_dsl.lang import ast

Kind = Literal["let", "layers", "path"]


def children(node: ast.Node) -> Iterator[ast.Node]:
    """The nodes in the fields of a node, in the order of the fields."""
    for one in fields(node):
        value = getattr(node, one.name)
        if isinstance(value, ast.Node):
            yield value
        elif isinstance(value, tuple):
            yield from (inner for inner in value if isinstance(inner, ast.Node))


def walk(node: ast.Node) -> Iterator[ast.Node]:
    """A node and all below it."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += reversed(list(children(one)))


def nodes_at(file: ast.File, offset: int) -> list[ast.Node]:
    """The nodes around an offset, the innermost first. A File has no node above its items."""
    found: list[ast.Node] = []
    level: list[ast.Node] = list(children(file))
    while True:
        here = [one for one in level if one.span.start <= offset <= one.span.stop]
        if not here:
            return found
        node = min(here, key=lambda one: one.span.stop - one.span.start)
        found.insert(0, node)
        level = list(children(node))


@dataclass(frozen=True)
class Occurrence:
    """A name in the text: where it is defined, or one of its uses."""

    kind: Kind
    name: str
    span: Span
    is_definition: bool


def occurrences(
    file: ast.File, lets: set[str], paths: set[str], layers: set[str]
) -> list[Occurrence]:
    """Every `let`, path and `layers` name of a file.

    A name in a value is a `let` where one has this name, as lang/link.py replaces them; else a path
    or a `layers` definition.
    """
    found: list[Occurrence] = []

    def use(node: ast.Name, *kinds: Kind) -> None:
        known: dict[Kind, set[str]] = {"let": lets, "path": paths, "layers": layers}
        for kind in kinds:
            if node.name in known[kind]:
                found.append(Occurrence(kind, node.name, node.span, False))
                return

    for node in walk(file):
        match node:
            case ast.Let(name=name):
                found.append(Occurrence("let", name.name, name.span, True))
            case ast.Layers(name=name):
                found.append(Occurrence("layers", name.name, name.span, True))
            case ast.PathNode(name=name):
                found.append(Occurrence("path", name.name, name.span, True))
            case ast.ByName(name=text):
                if text in layers:
                    found.append(Occurrence("layers", text, node.span, False))
            case ast.Share(path=name) | ast.Deploy(path=name):
                use(name, "path")
        for one in fields(node) if isinstance(node, ast.Node) else ():
            value = getattr(node, one.name)
            inner = value if isinstance(value, tuple) else (value,)
            in_value = one.name in ast.VALUES or isinstance(node, ast.List)
            for each in inner:
                if isinstance(each, ast.Name) and in_value:
                    is_view = isinstance(node, ast.PathNode)
                    use(each, *(("let",) if is_view else ("let", "path", "layers")))
    return sorted(found, key=lambda one: one.span.start)
