"""How each node is written, in its one spelling.

In:   the nodes of a recipe (ast.py), from build.py or made by a program.
Out:  pieces: strings that stand on one line with a space between them. A line that is too
      long may be broken between two pieces and nowhere else.
Not:  no line is broken here, nothing is aligned, no comment is placed; fmt.py does that.
"""

from __future__ import annotations

import re

from dcil_dsl.lang import ast
from dcil_dsl.words.units import Time

BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}
RANGE, UNARY, ATOM = 0, 3, 4

# A number followed by one of these on the same line would be read as a time.
UNITS = frozenset({"ep", "epoch", "epochs", "step", "steps"})


def value_text(node: ast.Value) -> str:
    """A value on one line: `linear(0ep..75% run, grid=1ep)`."""
    return " ".join(value_pieces(node))


def selector_text(node: ast.Selector) -> str:
    """A selector on one line: `Conv2d, Linear except first Conv2d`."""
    return " ".join(selector_pieces(node))


# -- values --------------------------------------------------------------------------------


def value_pieces(node: ast.Value) -> list[str]:
    """The pieces of a value; they break after commas and around operators."""
    match node:
        case ast.Literal():
            return [_literal(node)]
        case ast.Name(name=name):
            return [name]
        case ast.Call(name=name, arguments=arguments):
            return _glue(name.name + "(", _listed([_argument(a) for a in arguments]), ")")
        case ast.List(items=items):
            return _glue("[", _listed([value_pieces(item) for item in items]), "]")
        case ast.Negative(value=inner):
            return _glue("-", _operand(inner, UNARY), "")
        case ast.Arithmetic(operator=operator, left=left, right=right):
            # `a - b - c` is `(a - b) - c`: only the right side of an equal rank needs them.
            binding = BINDING[operator]
            return [*_operand(left, binding), operator, *_operand(right, binding + 1)]
        case ast.RangeOf(start=start, stop=stop):
            first, last = _operand(start, RANGE + 1), _operand(stop, RANGE + 1)
            return [*first[:-1], f"{first[-1]}..{last[0]}", *last[1:]]
    raise AssertionError(f"not a value: {node!r}")


def _operand(node: ast.Value, at_least: int) -> list[str]:
    """The operand's pieces, in parentheses where it binds less than its place asks for."""
    match node:
        case ast.RangeOf():
            binding = RANGE
        case ast.Arithmetic(operator=operator):
            binding = BINDING[operator]
        case ast.Negative():
            binding = UNARY
        case _:
            binding = ATOM
    pieces = value_pieces(node)
    return pieces if binding >= at_least else _glue("(", pieces, ")")


def _argument(node: ast.Argument) -> list[str]:
    pieces = value_pieces(node.value)
    return pieces if node.name is None else _glue(node.name.name + "=", pieces, "")


def _literal(node: ast.Literal) -> str:
    match node.value:
        case bool(value):
            return "true" if value else "false"
        case None:
            return "none"
        case str(value):
            return f'"{value}"'
        case Time(unit=unit):
            # The digits stay as written (0.50ep), the unit gets its one spelling.
            digits = re.sub(r"[^0-9.-].*", "", node.text)
            suffix = {"epochs": "ep", "steps": " steps", "run": "% run"}[unit]
            return digits + (" step" if unit == "steps" and digits == "1" else suffix)
    return node.text


def _glue(before: str, pieces: list[str], after: str) -> list[str]:
    pieces = pieces or [""]
    pieces = [before + pieces[0], *pieces[1:]]
    return [*pieces[:-1], pieces[-1] + after]


def _listed(parts: list[list[str]]) -> list[str]:
    """The parts with a comma after each but the last."""
    commas = [part if i == len(parts) - 1 else _glue("", part, ",") for i, part in enumerate(parts)]
    return [piece for part in commas for piece in part]


# -- selectors -----------------------------------------------------------------------------


def selector_pieces(node: ast.Selector) -> list[str]:
    """The pieces of a selector. Its grammar has no parentheses, so neither has this."""
    match node:
        case ast.ByType(type=name) | ast.ByName(name=name):
            return [name]
        case ast.ByGlob(pattern=pattern):
            return [f'"{pattern}"']
        case ast.ByRegex(pattern=pattern):
            return [f're"{pattern}"']
        case ast.First(count=count, of=of):
            return _picked("first", count, of)
        case ast.Last(count=count, of=of):
            return _picked("last", count, of)
        case ast.Inside(of=of, scope=scope):
            return [*selector_pieces(of), "in", f'"{scope}"']
        case ast.Having(of=of, conditions=conditions):
            return [*selector_pieces(of), "where", *_anded(conditions)]
        case ast.Union_(parts=parts):
            return _listed([selector_pieces(part) for part in parts])
        case ast.Except(of=of, but=but):
            return [*selector_pieces(of), "except", *selector_pieces(but)]
    raise AssertionError(f"not a selector: {node!r}")


def _picked(word: str, count: int, of: ast.Selector) -> list[str]:
    inner = selector_pieces(of)
    if count == 1:
        return [word, *inner]
    if inner[0] in UNITS:
        return [word, f"{count}\n    {inner[0]}"]
    return [word, str(count), *inner]


def _anded(conditions: tuple[ast.Condition, ...]) -> list[str]:
    pieces: list[str] = []
    for condition in conditions:
        pieces += ["and"] if pieces else []
        pieces += [condition.name.name, condition.compare, *value_pieces(condition.value)]
    return pieces


# -- statements, without their blocks ----------------------------------------------------------


def key_pieces(node: ast.Statement) -> list[str]:
    """The pieces before the `=`, the `by`, the `to` or the comparison."""
    match node:
        case ast.Setting(name=name) | ast.Condition(name=name):
            return [name.name]
        case ast.Let(name=name):
            return ["let", name.name]
        case ast.Layers(name=name):
            return ["layers", name.name]
        case ast.PathNode(name=name):
            return ["path", name.name]
        case ast.UpdateNode(parts=parts):
            return ["update", *_listed([[part.name] for part in parts])]
        case ast.PruneNode(selector=selector):
            return ["prune", *selector_pieces(selector)]
    return []


def statement_pieces(node: ast.Statement) -> list[str]:
    """The pieces of an item, a setting or a line of `mix`, up to the `{` of its block.

    Those of key_pieces come first; the sign that follows them begins the next one.
    """
    key = key_pieces(node)
    match node:
        case ast.Setting(value=value) | ast.Let(value=value) | ast.PathNode(view=value):
            return key + _glue("= ", value_pieces(value), "")
        case ast.Condition(compare=compare, value=value):
            return key + _glue(f"{compare} ", value_pieces(value), "")
        case ast.Layers(selector=selector):
            return key + _glue("= ", selector_pieces(selector), "")
        case ast.PruneNode(target=target):
            return key + _glue("to ", value_pieces(target), "")
        case ast.KeepNode(selector=selector):
            return ["keep", *selector_pieces(selector)]
        case ast.UpdateNode(shares=shares):
            return [*key, *_glue("by ", _summed(shares), ""), *_window(node)]
        case ast.PrivateNode(selector=selector):
            return ["private", *selector_pieces(selector)]
        case ast.LossNode(scalar=scalar, term=term):
            return ["loss", *_scaled(scalar), *value_pieces(term), *_window(node)]
        case ast.Deploy(path=path):
            return ["deploy", path.name]
        case ast.BlockNode(kind=kind, name=name, quoted=quoted):
            return [kind] if name is None else [kind, f'"{name}"' if quoted else name]
        case ast.Mix():
            return ["mix"]
        case ast.Expect():
            return ["expect"]
        case ast.HeadNode(kind=kind, value=literal):
            return [kind, *value_pieces(literal)]
    raise AssertionError(f"not a statement: {node!r}")


def _summed(shares: tuple[ast.Share, ...]) -> list[str]:
    pieces: list[str] = []
    for share in shares:
        pieces += ["+"] if pieces else []
        pieces += [*_scaled(share.scalar), share.path.name]
    return pieces


def _scaled(scalar: ast.Literal | ast.Name | None) -> list[str]:
    return [] if scalar is None else [*value_pieces(scalar), "*"]


def _window(node: ast.UpdateNode | ast.LossNode) -> list[str]:
    pieces = [] if node.start is None else ["from", *value_pieces(node.start)]
    return pieces if node.stop is None else [*pieces, "until", *value_pieces(node.stop)]
