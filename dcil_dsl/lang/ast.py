"""The nodes of a recipe as written: frozen, each with its span.

In:   build.py makes them, and nothing else does.
Out:  File for link.py, fmt.py and check.py; selectors also for plan/select.py.
Not:  no meaning: a name may be unknown, a unit wrong. Spans do not count in equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

from dcil_dsl.diagnostics.source import Source, Span

BROKEN = object()  # the value of a Literal that could not be worked out and was reported


@dataclass(frozen=True, kw_only=True)
class Node:
    span: Span = field(compare=False, repr=False)


# -- values ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Literal(Node):
    """A number, percent, time, ratio, string, boolean or none.

    `value` is a float or int, str, bool, None, Percent, Time or Ratio (words/units.py);
    `text` is how it was written; `origin` is the value of the `let` that link.py put here.
    """

    value: object
    text: str = field(compare=False)
    origin: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Name(Node):
    """A small name: a `let`, a path, or a word of the vocabulary."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Argument(Node):
    name: Name | None  # None: positional
    value: Value


@dataclass(frozen=True, kw_only=True)
class Call(Node):
    name: Name
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, kw_only=True)
class List(Node):
    items: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Negative(Node):
    value: Value


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Node):
    operator: str  # + - * /
    left: Value
    right: Value


@dataclass(frozen=True, kw_only=True)
class RangeOf(Node):
    start: Value
    stop: Value


Value = Union[Literal, Name, Call, List, Negative, Arithmetic, RangeOf]
# The fields that hold a Value; a Name in any other field is a path, a setting or a word.
VALUES = ("value", "target", "scalar", "term", "start", "stop")

# -- selectors: sets of layers -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ByType(Node):
    """`Conv2d`: modules of this class or of one derived from it."""

    type: str


@dataclass(frozen=True, kw_only=True)
class ByGlob(Node):
    """`"layer?.*.conv2"`: `*` within one name, `**` across, `?` one character."""

    pattern: str


@dataclass(frozen=True, kw_only=True)
class ByRegex(Node):
    """`re"..."`: the whole path must match."""

    pattern: str


@dataclass(frozen=True, kw_only=True)
class ByName(Node):
    """`shortcuts`: what a `layers` definition names."""

    name: str


@dataclass(frozen=True, kw_only=True)
class First(Node):
    """`first 2 Conv2d`, in execution order."""

    count: int
    of: Selector


@dataclass(frozen=True, kw_only=True)
class Last(Node):
    count: int
    of: Selector


@dataclass(frozen=True, kw_only=True)
class Inside(Node):
    """`Conv2d in "layer?.0.downsample"`."""

    of: Selector
    scope: str
    scope_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Condition(Node):
    """`groups == 1`; also used by `expect`."""

    name: Name
    compare: str
    value: Value


@dataclass(frozen=True, kw_only=True)
class Having(Node):
    """`Conv2d where groups == 1 and kernel_size == 3`."""

    of: Selector
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, kw_only=True)
class Union_(Node):
    """`A, B`."""

    parts: tuple[Selector, ...]


@dataclass(frozen=True, kw_only=True)
class Except(Node):
    """`A, B except C, D`: one at most, at the end."""

    of: Selector
    but: Selector


Selector = Union[ByType, ByGlob, ByRegex, ByName, First, Last, Inside, Having, Union_, Except]

# -- items ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting(Node):
    name: Name
    value: Value


@dataclass(frozen=True, kw_only=True)
class BlockNode(Node):
    """`recipe`, `model`, `data`, `pruning` or `train` with its settings."""

    kind: str
    name: str | None  # `pruning` and `train` have none, `model` and `data` may have none
    settings: tuple[Setting, ...]
    name_span: Span | None = field(default=None, compare=False, repr=False)
    quoted: bool = False  # model "package.module:callable"


@dataclass(frozen=True, kw_only=True)
class Let(Node):
    name: Name
    value: Value


@dataclass(frozen=True, kw_only=True)
class Layers(Node):
    name: Name
    selector: Selector


@dataclass(frozen=True, kw_only=True)
class PruneNode(Node):
    selector: Selector
    target: Value
    settings: tuple[Setting, ...]
    head_span: Span = field(compare=False, repr=False)  # without the block


@dataclass(frozen=True, kw_only=True)
class KeepNode(Node):
    selector: Selector


@dataclass(frozen=True, kw_only=True)
class PathNode(Node):
    name: Name
    view: Name | Call
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Share(Node):
    scalar: Literal | Name | None  # None: 1
    path: Name


@dataclass(frozen=True, kw_only=True)
class UpdateNode(Node):
    parts: tuple[Name, ...]
    shares: tuple[Share, ...]
    start: Literal | Name | None
    stop: Literal | Name | None


@dataclass(frozen=True, kw_only=True)
class PrivateNode(Node):
    selector: Selector
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class LossNode(Node):
    scalar: Literal | Name | None
    term: Call
    start: Literal | Name | None
    stop: Literal | Name | None


@dataclass(frozen=True, kw_only=True)
class Deploy(Node):
    path: Name


@dataclass(frozen=True, kw_only=True)
class HeadNode(Node):
    """`language 1` or `extends "..."`, which are fields of File: as a statement, to print it."""

    kind: str
    value: Literal


MixItem = Union[PathNode, UpdateNode, PrivateNode, LossNode, Deploy]


@dataclass(frozen=True, kw_only=True)
class Mix(Node):
    items: tuple[MixItem, ...]


@dataclass(frozen=True, kw_only=True)
class Expect(Node):
    conditions: tuple[Condition, ...]


Item = Union[BlockNode, Let, Layers, PruneNode, KeepNode, Mix, Expect]


@dataclass(frozen=True, kw_only=True)
class File(Node):
    source: Source = field(compare=False, repr=False)
    language: Literal
    extends: Literal | None
    items: tuple[Item, ...]
    comments: tuple[tuple[int, str], ...] = field(default=(), compare=False, repr=False)


Statement = Union[Item, MixItem, Setting, Condition, HeadNode]


def kind_of(node: Statement) -> str:
    """The word that a statement begins with; `setting` and `condition` for those without one."""
    return (
        node.kind
        if isinstance(node, BlockNode | HeadNode)
        else type(node).__name__.removesuffix("Node").lower()
    )
