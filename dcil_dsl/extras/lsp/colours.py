"""Semantic tokens: the kind of every word, by what it means where it stands.

In:   an Analysis; the text may be broken.
Out:  the numbers of the protocol, five a token.
Not:  no colours: a theme of the editor has them.
"""

from __future__ import annotations

from collections.abc import Iterator

from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.lsp.positions import units
from dcil_dsl.extras.lsp.tokens import Lexeme

TYPES = [
    "comment",
    "string",
    "regexp",
    "number",
    "class",
    "keyword",
    "operator",
    "function",
    "property",
    "variable",
    "enumMember",
]
MODIFIERS = ["declaration"]
_KIND = {
    "comment": "comment",
    "string": "string",
    "regex": "regexp",
    "amount": "number",
    "type": "class",
    "keyword": "keyword",
    "sign": "operator",
}


def semantic_tokens(analysis: Analysis) -> list[int]:
    """Line and column relative to the token before, length, type, modifiers."""
    data: list[int] = []
    line, column = 0, 0
    for one, kind, declares in _kinds(analysis):
        at = analysis.lines.position(one.start)
        data += [
            at.line - line,
            at.character - (column if at.line == line else 0),
            units(one.text),
            TYPES.index(kind),
            1 if declares else 0,
        ]
        line, column = at.line, at.character
    return data


def _kinds(analysis: Analysis) -> Iterator[tuple[Lexeme, str, bool]]:
    names = analysis.names
    defined = {*names.lets, *names.layers, *names.paths}
    found = analysis.lexemes
    before = ""
    for one, after in zip(found, [*found[1:], None], strict=True):
        if one.kind == "sign" and one.text in "{}()[],":
            before = one.text
            continue
        follows = after.text if after is not None else ""
        if one.kind != "name":
            yield one, _KIND[one.kind], False
        elif before in ("let", "layers", "path"):
            yield one, "variable", True
        elif follows == "=":
            yield one, "property", False
        elif one.text in defined:
            yield one, "variable", False
        elif follows == "(":
            yield one, "function", False
        else:
            yield one, "enumMember", False
        if one.kind != "comment":
            before = one.text
