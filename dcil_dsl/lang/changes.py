"""What differs between two recipes, by the name of the setting: `train.epochs: 8ep -> 2ep`.

In:   two recipes as text, closed ones (resolved.prune) for a difference in meaning.
Out:  lines: `~` for a value that is another one, `-` and `+` for statements of one recipe alone.
Not:  comments, spaces, the order of settings, titles and where a `let` stands do not differ.
"""

from __future__ import annotations

from collections import Counter

from dcil_dsl.diagnostics.source import Source
from dcil_dsl.lang import ast
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.fmt import children_of, in_order
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.unparse import key_pieces, statement_pieces

BLOCKS = (ast.BlockNode, ast.Mix, ast.Expect)


def recipe_changes(old: str, new: str) -> list[str]:
    """The differences of `new` from `old`. RecipeError where one of them does not parse."""
    before, after = _statements(old), _statements(new)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        if one is None or other is None:
            lines.append(f"{'+' if one is None else '-'} {_joined(name, one or other or '')}")
        else:
            lines.append(f"~ {name}: {_bare(one)} -> {_bare(other)}")
    return lines


def _statements(text: str) -> dict[str, str]:
    """Each setting and statement by its name, in the order of canonical text."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for item in in_order(build_file(parse_text(Source(text, "<recipe>")))):
        if not (isinstance(item, ast.BlockNode) and item.kind == "recipe"):
            _gather(item, "", found, seen)
    return found


def _gather(node: ast.Statement, owner: str, found: dict[str, str], seen: Counter[str]) -> None:
    """Add a statement and those in its block. Of two with one name the second is `name (2)`."""
    name, value = _divided(node)
    if owner:
        name = f"{owner}.{name}" if isinstance(node, ast.Setting) else name
    if not isinstance(node, BLOCKS):
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} ({seen[name]})"
    if not isinstance(node, BLOCKS) or value:
        found[name] = value
    for inner in children_of(node):
        _gather(inner, name, found, seen)


def _divided(node: ast.Statement) -> tuple[str, str]:
    """What a statement is about, and what it says of it, with the sign between them."""
    pieces = statement_pieces(node)
    keys = len(key_pieces(node))
    match node:
        case ast.BlockNode():
            keys = 1
        case ast.Deploy():
            keys = 1
        case ast.Condition(name=name):
            return f"expect {name.name}", " ".join(pieces[keys:])
        case _ if not keys:
            keys = len(pieces)
    return " ".join(pieces[:keys]), " ".join(pieces[keys:])


def _joined(name: str, value: str) -> str:
    return f"{name} {value}".rstrip()


def _bare(value: str) -> str:
    """The value without the sign before it: another path of `update` is still `by` one."""
    for sign in ("= ", "to ", "by "):
        if value.startswith(sign):
            return value.removeprefix(sign)
    return value or "(nothing)"
