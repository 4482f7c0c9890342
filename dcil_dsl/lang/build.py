"""Syntax tree to nodes: the only place where spans are born.

In:   Parsed (parse.py).
Out:  ast.File, or one value's node for `--set`.
Not:  no meaning. One method per rule of the grammar, under the rule's name or alias.
"""

from __future__ import annotations

import math
from typing import Any, cast

from lark import Token, Transformer, Tree, v_args

from dcil_dsl.diagnostics import Diagnostics, Source, Span
from dcil_dsl.lang import ast
from dcil_dsl.lang.parse import Parsed
from dcil_dsl.words.units import MAX_WHOLE, Percent, Ratio, Time, TimeUnit

Parts = list[Any]  # what lark hands over: built nodes, tokens, None
_UNITS: dict[str, TimeUnit] = {
    "ep": "epochs",
    "epoch": "epochs",
    "epochs": "epochs",
    "step": "steps",
    "steps": "steps",
}


def build_file(parsed: Parsed) -> ast.File:
    """The nodes of a parsed recipe; RecipeError where a number is too large to hold."""
    found = Diagnostics()
    nodes = _Build(parsed.source, found).transform(parsed.tree)
    found.stop_if_wrong()
    language, extends, *items = nodes
    return ast.File(
        span=Span(parsed.source, 0, len(parsed.source.text)),
        source=parsed.source,
        language=language,
        extends=extends,
        items=tuple(items),
        comments=parsed.comments,
    )


def build_value(tree: Tree, source: Source) -> ast.Value:
    """The node of `--set`'s value, from parse_value's tree."""
    found = Diagnostics()
    let = _Build(source, found).transform(tree)
    found.stop_if_wrong()
    return cast(ast.Value, let.value)


@v_args(meta=True)
class _Build(Transformer):  # type: ignore[misc]
    """Children arrive built; a Token is a name, a literal or a pattern; None is a missing part."""

    def __init__(self, source: Source, found: Diagnostics):
        super().__init__()
        self.source, self.found = source, found

    def _at(self, where: Any) -> Span:
        if isinstance(where, Token):
            return Span(self.source, where.start_pos, where.end_pos)
        if getattr(where, "start_pos", None) is None:  # an empty rule
            return Span(self.source, 0, 0)
        return Span(self.source, where.start_pos, where.end_pos)

    def _name(self, token: Token) -> ast.Name:
        return ast.Name(span=self._at(token), name=str(token))

    # -- file ---------------------------------------------------------------------------

    def start(self, meta: Any, children: Parts) -> list[Any]:
        return children

    def language(self, meta: Any, children: Parts) -> ast.Literal:
        return self.number(meta, children)

    def extends(self, meta: Any, children: Parts) -> ast.Literal:
        return self.string(meta, children)

    # -- settings blocks ------------------------------------------------------------------

    def settings(self, meta: Any, children: Parts) -> tuple[ast.Setting, ...]:
        return tuple(children)

    def setting(self, meta: Any, children: Parts) -> ast.Setting:
        name, value = children
        return ast.Setting(span=self._at(meta), name=self._name(name), value=value)

    def _block(
        self, kind: str, meta: Any, name: Any, settings: tuple[ast.Setting, ...] | None
    ) -> ast.BlockNode:
        quoted = name is not None and name.type == "STRING"
        return ast.BlockNode(
            span=self._at(meta),
            kind=kind,
            settings=settings or (),
            quoted=quoted,
            name=None if name is None else _unquoted(name) if quoted else str(name),
            name_span=None if name is None else self._at(name),
        )

    def recipe(self, meta: Any, children: Parts) -> ast.BlockNode:
        return self._block("recipe", meta, *children)

    def model(self, meta: Any, children: Parts) -> ast.BlockNode:
        return self._block("model", meta, *children)

    def data(self, meta: Any, children: Parts) -> ast.BlockNode:
        return self._block("data", meta, *children)

    def pruning(self, meta: Any, children: Parts) -> ast.BlockNode:
        return self._block("pruning", meta, None, *children)

    def train(self, meta: Any, children: Parts) -> ast.BlockNode:
        return self._block("train", meta, None, *children)

    def expect(self, meta: Any, children: Parts) -> ast.Expect:
        return ast.Expect(span=self._at(meta), conditions=tuple(children))

    # -- definitions -----------------------------------------------------------------------

    def let(self, meta: Any, children: Parts) -> ast.Let:
        name, value = children
        return ast.Let(span=self._at(meta), name=self._name(name), value=value)

    def layers(self, meta: Any, children: Parts) -> ast.Layers:
        name, selector = children
        return ast.Layers(span=self._at(meta), name=self._name(name), selector=selector)

    # -- rules -------------------------------------------------------------------------------

    def prune(self, meta: Any, children: Parts) -> ast.PruneNode:
        selector, target, settings = children
        whole = self._at(meta)
        head = Span(self.source, whole.start, target.span.stop)
        if settings is None:
            head = whole  # a target in parentheses ends after its node
        return ast.PruneNode(
            span=whole, selector=selector, target=target, settings=settings or (), head_span=head
        )

    def keep(self, meta: Any, children: Parts) -> ast.KeepNode:
        return ast.KeepNode(span=self._at(meta), selector=children[0])

    # -- selectors ---------------------------------------------------------------------------

    def selector(self, meta: Any, children: Parts) -> ast.Selector:
        of, but = children
        return of if but is None else ast.Except(span=self._at(meta), of=of, but=but)

    def union(self, meta: Any, children: Parts) -> ast.Selector:
        if len(children) == 1:
            return cast(ast.Selector, children[0])
        return ast.Union_(span=self._at(meta), parts=tuple(children))

    def inside(self, meta: Any, children: Parts) -> ast.Inside:
        of, scope = children
        return ast.Inside(
            span=self._at(meta), of=of, scope=_unquoted(scope), scope_span=self._at(scope)
        )

    def having(self, meta: Any, children: Parts) -> ast.Having:
        of, conditions = children
        return ast.Having(span=self._at(meta), of=of, conditions=conditions)

    def first(self, meta: Any, children: Parts) -> ast.First:
        return ast.First(span=self._at(meta), count=self._count(children[0]), of=children[1])

    def last(self, meta: Any, children: Parts) -> ast.Last:
        return ast.Last(span=self._at(meta), count=self._count(children[0]), of=children[1])

    def _count(self, token: Token | None) -> int:
        if token is None:
            return 1
        value = self._number(token, str(token))
        if not isinstance(value, int) or value < 1:
            self.found.add(
                "E205",
                f"`{token}` is not a count of layers",
                self._at(token),
                help="write a whole number from 1 on",
            )
            return 1
        return value

    def by_type(self, meta: Any, children: Parts) -> ast.ByType:
        return ast.ByType(span=self._at(meta), type=str(children[0]))

    def by_glob(self, meta: Any, children: Parts) -> ast.ByGlob:
        return ast.ByGlob(span=self._at(meta), pattern=_unquoted(children[0]))

    def by_regex(self, meta: Any, children: Parts) -> ast.ByRegex:
        return ast.ByRegex(span=self._at(meta), pattern=str(children[0])[3:-1])

    def by_name(self, meta: Any, children: Parts) -> ast.ByName:
        return ast.ByName(span=self._at(meta), name=str(children[0]))

    def conditions(self, meta: Any, children: Parts) -> tuple[ast.Condition, ...]:
        return tuple(children)

    def condition(self, meta: Any, children: Parts) -> ast.Condition:
        name, compare, value = children
        return ast.Condition(
            span=self._at(meta), name=self._name(name), compare=str(compare), value=value
        )

    # -- mix -----------------------------------------------------------------------------------

    def mix(self, meta: Any, children: Parts) -> ast.Mix:
        return ast.Mix(span=self._at(meta), items=tuple(children))

    def path(self, meta: Any, children: Parts) -> ast.PathNode:
        name, view, settings = children
        view = self._name(view) if isinstance(view, Token) else view
        return ast.PathNode(
            span=self._at(meta), name=self._name(name), view=view, settings=settings or ()
        )

    def update(self, meta: Any, children: Parts) -> ast.UpdateNode:
        *many, start, stop = children
        parts = tuple(self._name(c) for c in many if isinstance(c, Token))
        shares = tuple(c for c in many if isinstance(c, ast.Share))
        return ast.UpdateNode(
            span=self._at(meta), parts=parts, shares=shares, start=start, stop=stop
        )

    def share(self, meta: Any, children: Parts) -> ast.Share:
        scalar, path = children
        return ast.Share(span=self._at(meta), scalar=scalar, path=self._name(path))

    def private(self, meta: Any, children: Parts) -> ast.PrivateNode:
        selector, settings = children
        return ast.PrivateNode(span=self._at(meta), selector=selector, settings=settings or ())

    def loss(self, meta: Any, children: Parts) -> ast.LossNode:
        scalar, term, start, stop = children
        return ast.LossNode(span=self._at(meta), scalar=scalar, term=term, start=start, stop=stop)

    def deploy(self, meta: Any, children: Parts) -> ast.Deploy:
        return ast.Deploy(span=self._at(meta), path=self._name(children[0]))

    # -- values ----------------------------------------------------------------------------------

    def _literal(self, token: Token, value: object) -> ast.Literal:
        return ast.Literal(span=self._at(token), value=value, text=str(token))

    def _number(self, token: Token, text: str) -> int | float:
        # Nobody means a number of 400 digits, and int() refuses 4300.
        value = float(text)
        if not math.isfinite(value):
            self.found.add("E228", "this number is too large", self._at(token))
            return 1
        # `1e3` is the whole number 1000; `2.0` was written as a fraction on purpose.
        whole = "." not in text and value == int(value) and value <= MAX_WHOLE
        return int(value) if whole else value

    def number(self, meta: Any, children: Parts) -> ast.Literal:
        return self._literal(children[0], self._number(children[0], str(children[0])))

    def minus(self, meta: Any, children: Parts) -> ast.Literal:
        """A share below zero, as a `let` may give it: its sign is part of the number."""
        value = self._number(children[0], str(children[0]))
        return ast.Literal(span=self._at(meta), value=-value, text=f"-{children[0]}")

    def percent(self, meta: Any, children: Parts) -> ast.Literal:
        token = children[0]
        return self._literal(token, Percent(self._number(token, str(token)[:-1]) / 100))

    def time(self, meta: Any, children: Parts) -> ast.Literal:
        token = children[0]
        digits = str(token).rstrip("abcdefghijklmnopqrstuvwxyz \t")
        if digits.endswith("%"):
            return self._literal(token, Time(self._number(token, digits[:-1]) / 100, "run"))
        unit = _UNITS[str(token)[len(digits) :].strip()]
        return self._literal(token, Time(self._number(token, digits), unit))

    def ratio(self, meta: Any, children: Parts) -> ast.Literal:
        token = children[0]
        keep, of = (int(self._number(token, part)) for part in str(token).split(":"))
        return self._literal(token, Ratio(keep, of))

    def string(self, meta: Any, children: Parts) -> ast.Literal:
        return self._literal(children[0], _unquoted(children[0]))

    def true(self, meta: Any, children: Parts) -> ast.Literal:
        return ast.Literal(span=self._at(meta), value=True, text="true")

    def false(self, meta: Any, children: Parts) -> ast.Literal:
        return ast.Literal(span=self._at(meta), value=False, text="false")

    def none(self, meta: Any, children: Parts) -> ast.Literal:
        return ast.Literal(span=self._at(meta), value=None, text="none")

    def ref(self, meta: Any, children: Parts) -> ast.Name:
        return self._name(children[0])

    def list(self, meta: Any, children: Parts) -> ast.List:
        items = tuple(c for c in children if c is not None)
        return ast.List(span=self._at(meta), items=items)

    def call(self, meta: Any, children: Parts) -> ast.Call:
        name, *given = children
        arguments = tuple(a for a in given if a is not None)
        return ast.Call(span=self._at(meta), name=self._name(name), arguments=arguments)

    def own(self, meta: Any, children: Parts) -> ast.Call:
        """`model(...)`: the keyword of a block, here the word for the model's own loss."""
        start = meta.start_pos
        span = Span(self.source, start, start + len("model"))
        arguments = tuple(a for a in children if a is not None)
        name = ast.Name(span=span, name="model")
        return ast.Call(span=self._at(meta), name=name, arguments=arguments)

    def positional(self, meta: Any, children: Parts) -> ast.Argument:
        return ast.Argument(span=children[0].span, name=None, value=children[0])

    def keyword(self, meta: Any, children: Parts) -> ast.Argument:
        name, value = children
        return ast.Argument(span=self._at(meta), name=self._name(name), value=value)

    def neg(self, meta: Any, children: Parts) -> ast.Negative:
        return ast.Negative(span=self._at(meta), value=children[0])

    def _arithmetic(self, operator: str, meta: Any, children: Parts) -> ast.Arithmetic:
        left, right = children
        return ast.Arithmetic(span=self._at(meta), operator=operator, left=left, right=right)

    def add(self, meta: Any, children: Parts) -> ast.Arithmetic:
        return self._arithmetic("+", meta, children)

    def sub(self, meta: Any, children: Parts) -> ast.Arithmetic:
        return self._arithmetic("-", meta, children)

    def mul(self, meta: Any, children: Parts) -> ast.Arithmetic:
        return self._arithmetic("*", meta, children)

    def div(self, meta: Any, children: Parts) -> ast.Arithmetic:
        return self._arithmetic("/", meta, children)

    def range(self, meta: Any, children: Parts) -> ast.RangeOf:
        start, stop = children
        return ast.RangeOf(span=self._at(meta), start=start, stop=stop)


def _unquoted(token: Token) -> str:
    return str(token)[1:-1]
