"""Text to syntax tree, by the grammar in grammar/prune.lark.

In:   a Source.
Out:  Parsed: lark's tree with the comments beside it; parse_value for `--set`.
Not:  no nodes (build.py) and no sentences about what is wrong (syntax.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import Diagnostics, Source
from dcil_dsl.lang import lexical, syntax
from dcil_dsl.lang.grammar import END, grammar, written

if TYPE_CHECKING:
    from lark import Token, Tree


@dataclass(frozen=True)
class Parsed:
    """A tree and its comments as (offset, text); the text begins with `#`."""

    source: Source
    tree: Tree
    comments: tuple[tuple[int, str], ...]


def parse_text(source: Source) -> Parsed:
    """Parse a whole recipe; RecipeError with every E1xx found."""
    found = Diagnostics()
    tokens, comments = lexical.lex(source, found)
    tree = None
    syntax.version(source, tokens)
    syntax.too_deep(source, tokens, found)
    if not found.errors:
        tree = feed(tokens)
    if tree is None:
        syntax.report(source, tokens, found)
        found.stop_if_wrong()
        raise AssertionError("the parser refused a text in which no error was found")
    return Parsed(source, tree, comments)


def parse_value(source: Source, start: int) -> Tree:
    """Parse the value that stands in `source` from offset `start` on: what `--set` gives.

    Returns the tree of `let override = VALUE`; RecipeError where it is not one value.
    """
    found = Diagnostics()
    # Spaces keep every offset where it is in the text that the message quotes.
    padded = Source(" " * start + source.text[start:], source.name)
    tokens, _ = lexical.lex(padded, found, quoted=source)
    tree = None
    syntax.too_deep(source, tokens, found)
    if not found.errors:
        tree = feed([*written("language", "1", "let", "override", "="), *tokens])
    # A second item or setting after the value would parse; only the one `let` may be there.
    if tree is None or len(tree.children) != 3:
        if not found.errors:
            syntax.not_one_value(source, start, found)
        found.stop_if_wrong()
    return tree.children[2]


def feed(tokens: list[Token]) -> Tree | None:
    """The tree of a token list, None where it is not a recipe."""
    from lark import Token, UnexpectedToken

    state = grammar().parse_interactive()
    try:
        for token in tokens:
            state.feed_token(token)
        return state.feed_token(Token(END, ""))
    except UnexpectedToken:
        return None
