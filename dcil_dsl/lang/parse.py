"""Text to syntax tree, by the grammar in grammar/prune.lark.

In:   a Source.
Out:  Parsed: lark's tree with the comments beside it; parse_value for `--set`.
Not:  no nodes (build.py) and no sentences about what is wrong (syntax.py). Lark is imported
      when the first text arrives, so that importing the language costs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import Diagnostics, Source

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

# lark's words for what the grammar writes as signs, so that messages can quote the sign.
END = "$END"
_COMMENT = re.compile(r"#[^\n]*")


@dataclass(frozen=True)
class Parsed:
    """A tree and its comments as (offset, text); the text begins with `#`."""

    source: Source
    tree: Tree
    comments: tuple[tuple[int, str], ...]


def parse_text(source: Source) -> Parsed:
    """Parse a whole recipe; RecipeError with every E1xx found."""
    from dcil_dsl.lang import lexical, syntax  # both need the grammar from here

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
    from dcil_dsl.lang import lexical, syntax

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


@cache
def grammar() -> Lark:
    """The parser. Building it takes 50 to 200 ms, so it is done once and late."""
    from lark import Lark

    # The basic lexer reserves keywords everywhere; with the contextual one a keyword would be
    # a legal first setting of a block and an illegal second one.
    return Lark(grammar_text(), parser="lalr", lexer="basic", propagate_positions=True)


def grammar_text() -> str:
    """prune.lark, from inside an installed wheel or from the repository beside the package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "grammar", package.parent / "grammar"):
        if (folder / "prune.lark").is_file():
            return (folder / "prune.lark").read_text(encoding="utf-8")
    raise FileNotFoundError("prune.lark is neither in dcil_dsl/grammar nor in ../grammar")


@cache
def literals() -> dict[str, str]:
    """What each terminal with one spelling is written as: {"LBRACE": "{", "TRAIN": "train"}."""
    from lark.lexer import PatternStr

    terminals = grammar().terminals
    return {t.name: t.pattern.value for t in terminals if isinstance(t.pattern, PatternStr)}


def comments_between(text: str, tokens: list[Token]) -> tuple[tuple[int, str], ...]:
    """Comments stand between tokens; a `#` inside a string is inside a token."""
    found, stop = [], 0
    for token in [*tokens, None]:
        start = len(text) if token is None else token.start_pos
        found += [(m.start(), m.group().rstrip()) for m in _COMMENT.finditer(text, stop, start)]
        stop = start if token is None else token.end_pos
    return tuple(found)


def written(*words: str) -> list[Token]:
    """Tokens that no text holds, to put a piece of text in its place in the grammar."""
    from lark import Token

    kinds = {text: name for name, text in literals().items()}

    def kind(word: str) -> str:
        return kinds.get(word) or ("NUMBER" if word[0].isdigit() else "NAME")

    return [Token(kind(w), w, 0, 1, 1, 1, 1, 0) for w in words]
