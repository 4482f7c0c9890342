"""Text to syntax tree, or every syntax error of the text.

In:   a Source.
Out:  Parsed: lark's tree and the comments next to it; parse_value for `--set`. RecipeError with
      E1xx, several if reading can resume after the first.
Not:  no nodes (build.py). Stray characters: tokens.py; sentences: syntax_errors.py.

After an error, reading resumes at the next place that certainly begins something: a statement's
keyword, a statement of `mix` inside `mix`, a `name =` inside a settings block, or the `}` of the
open block. The parser starts afresh there, with the block opened for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import Diagnostic, Diagnostics, Source, Span
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.lang.syntax_errors import (
    ITEMS,
    MIX_ITEMS,
    Explained,
    Situation,
    explain,
    misspelt,
    of,
)
from dcil_dsl.lang.tokens import END, grammar, lex, written

if TYPE_CHECKING:
    from lark import Token, Tree

LANGUAGES = ("1",)
MAX_DEPTH = 30  # of brackets; the tree is walked by recursion
MAX_OPERATORS = 60  # that may nest, before a comma
MAX_STARTS = 200  # of the reading after an error; several on one line are reported once

_OPEN = {"LBRACE": "RBRACE", "LPAR": "RPAR", "LSQB": "RSQB"}
_NESTING = {"PLUS", "MINUS", "STAR", "SLASH", "IN", "WHERE", "AND"}


@dataclass(frozen=True)
class Parsed:
    """A tree and its comments as (offset, text); the text begins with `#`."""

    source: Source
    tree: Tree
    comments: tuple[tuple[int, str], ...]


def parse_text(source: Source) -> Parsed:
    """Parse a whole recipe; RecipeError with every E1xx found."""
    found = Diagnostics()
    tokens, comments = lex(source, found)
    tree = None
    version(source, tokens)
    too_deep(source, tokens, found)
    if not found.errors:
        tree = feed(tokens)
    if tree is None:
        report(source, tokens, found)
        found.stop_if_wrong()
        raise AssertionError("the parser refused a recipe without an error")
    return Parsed(source, tree, comments)


def parse_value(source: Source, start: int) -> Tree:
    """Parse the value that stands in `source` from offset `start` on: what `--set` gives.

    Returns the tree of `let override = VALUE`; RecipeError where it is not one value.
    """
    found = Diagnostics()
    # Spaces keep every offset where it is in the text that the message quotes.
    padded = Source(" " * start + source.text[start:], source.name)
    tokens, _ = lex(padded, found, quoted=source)
    tree = None
    too_deep(source, tokens, found)
    if not found.errors:
        tree = feed([*written("language", "1", "let", "override", "="), *tokens])
    # A second item or setting after the value would parse; only the one `let` may be there.
    if tree is None or len(tree.children) != 3:
        if not found.errors:
            not_one_value(source, start, found)
        found.stop_if_wrong()
    assert tree is not None
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


# -- errors ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """A `{` that is open, with the keyword that it belongs to."""

    keyword: Token | None
    brace: Token


def report(source: Source, tokens: list[Token], found: Diagnostics) -> None:
    """Note every syntax error of a token list that is not a recipe."""
    said = _lines(found.found)  # stray characters, already reported
    if not tokens:
        if not found.errors:
            found.add(
                "E111",
                "the recipe is empty",
                Span(source, 0, 0),
                help="a recipe starts with `language 1`",
            )
        return
    end = _end_token(source, tokens)
    tokens, at, prefix = _language(source, tokens, found)
    said |= _lines(found.errors)
    tokens = [*tokens, end]
    for _ in range(MAX_STARTS):
        if at >= len(tokens) or len(found.found) >= MAX_ERRORS:
            return
        fails, blocks = _read(tokens, at, prefix)
        if fails is None:
            return
        situation = _situation(source, tokens, at, fails, prefix, blocks)
        error = explain(situation)
        if not _lines([error.diagnostic]) <= said:
            found.note(error.diagnostic)
        said |= _lines([error.diagnostic])
        at, prefix = _resume(tokens, at, fails, blocks, error)


def _lines(diagnostics: list[Diagnostic]) -> set[int]:
    return {d.span.line for d in diagnostics if d.span is not None}


def version(source: Source, tokens: list[Token]) -> None:
    """Stop at a language this program does not know: nothing after it can be judged."""
    if [t.type for t in tokens[:2]] == ["LANGUAGE", "NUMBER"] and tokens[1] not in LANGUAGES:
        wrong = Diagnostics()
        wrong.add(
            "E109",
            f"language {tokens[1]} is not known",
            of(source, tokens[1]),
            label="this program reads language 1",
            help="a newer dcil reads it: upgrade dcil, and leave the number as it is",
        )
        wrong.stop_if_wrong()


def too_deep(source: Source, tokens: list[Token], found: Diagnostics) -> None:
    """Note nesting that nothing sensible needs and the recursion of later stages cannot hold."""
    brackets: list[int] = [0]
    for token in tokens:
        if token.type in _OPEN:
            brackets.append(0)
        elif token.type in _OPEN.values():
            brackets = brackets[:-1] or [0]
        elif token.type == "COMMA" or token.type in ITEMS or token.type in MIX_ITEMS:
            brackets[-1] = 0
        elif token.type in _NESTING:
            brackets[-1] += 1
        if token.type == "EQUAL" and len(brackets) <= 3:
            brackets[-1] = 0
        if len(brackets) > MAX_DEPTH or sum(brackets) > MAX_OPERATORS:
            found.add(
                "E114",
                "this is nested too deeply",
                of(source, token),
                help="name parts of it with `let` or `layers`",
            )
            return


def not_one_value(source: Source, start: int, found: Diagnostics) -> None:
    """Note that what `--set` gives is not one value."""
    found.add(
        "E101",
        "this is not one value",
        Span(source, start, len(source.text)),
        help="for example `--set target=95%` or `--set train.epochs=5ep`",
    )


def _language(
    source: Source, tokens: list[Token], found: Diagnostics
) -> tuple[list[Token], int, list[Token]]:
    """Judge the first statement: (tokens, where to go on, what to feed before)."""
    prefix = written("language", "1")
    first, second = tokens[0], tokens[1] if len(tokens) > 1 else None
    if first.type == "LANGUAGE":
        if second is not None and second.type == "NUMBER":
            return tokens, 2, prefix
        found.add("E108", "`language` has no version", of(source, first), help="write `language 1`")
        return tokens, 1, prefix
    near = misspelt(first, ["language"])
    if near and second is not None and second.type == "NUMBER":
        found.add("E105", f"`{first}` is not a statement", of(source, first), help=near)
        return tokens, 2, prefix
    found.add(
        "E108",
        "a recipe starts with `language 1`",
        of(source, first),
        label="this comes first",
        help="write `language 1` as the first line",
    )
    return tokens, 0, prefix


def _read(tokens: list[Token], at: int, prefix: list[Token]) -> tuple[int | None, list[_Block]]:
    """Feed tokens from `at` on: where the parser refuses, and the blocks open there."""
    from lark import UnexpectedToken

    state = grammar().parse_interactive()
    blocks: list[_Block] = []
    keyword = None
    for token in prefix:
        keyword = _enter(token, keyword, blocks)
        state.feed_token(token)
    for index in range(at, len(tokens)):
        try:
            state.feed_token(tokens[index])
        except UnexpectedToken:
            return index, blocks
        keyword = _enter(tokens[index], keyword, blocks)
    return None, blocks


def _enter(token: Token, keyword: Token | None, blocks: list[_Block]) -> Token | None:
    """Keep the list of open blocks; the keyword that a coming `{` would belong to."""
    if token.type == "LBRACE":
        blocks.append(_Block(keyword, token))
    elif token.type == "RBRACE" and blocks:
        blocks.pop()
    return token if token.type in ITEMS or token.type in MIX_ITEMS else keyword


def _situation(
    source: Source,
    tokens: list[Token],
    at: int,
    fails: int,
    prefix: list[Token],
    blocks: list[_Block],
) -> Situation:
    # The refused token may already have reduced the stacks, so that a parser that never saw it
    # says what was expected.
    state = grammar().parse_interactive()
    for token in [*prefix, *tokens[at:fails]]:
        state.feed_token(token)
    brackets = _open_brackets(tokens, at, fails)
    return Situation(
        source=source,
        tokens=tuple(tokens),
        at=fails,
        start=at,
        accepts=frozenset(state.accepts()),
        block=(blocks[-1].keyword, blocks[-1].brace) if blocks else None,
        in_mix=bool(blocks and blocks[0].keyword is not None and blocks[0].keyword.type == "MIX"),
        bracket=brackets[-1] if brackets else None,
    )


def _open_brackets(tokens: list[Token], at: int, stop: int) -> list[Token]:
    """Each `(` and `[` that is open at `stop`, the innermost last."""
    brackets: list[Token] = []
    for token in tokens[at:stop]:
        _keep_brackets(token, brackets)
    return brackets


def _keep_brackets(token: Token, brackets: list[Token]) -> None:
    if token.type in ("LPAR", "LSQB"):
        brackets.append(token)
    elif token.type in ("RPAR", "RSQB") and brackets:
        brackets.pop()


def _resume(
    tokens: list[Token], at: int, fails: int, blocks: list[_Block], error: Explained
) -> tuple[int, list[Token]]:
    """Where reading resumes after an error, and the tokens that open the block around it."""
    top = written("language", "1")
    inside = _opened(blocks)
    nested = 0  # braces opened in what is skipped
    start = error.resume if error.resume is not None else fails
    brackets = _open_brackets(tokens, at, start)
    for index in range(start, len(tokens)):
        token = tokens[index]
        follows = tokens[index + 1].type if index + 1 < len(tokens) else END
        fresh = index > at or start > at
        _keep_brackets(token, brackets)
        if token.type == END:
            return len(tokens), top
        if token.type in ITEMS and follows != "EQUAL" and fresh and _starts_item(token, follows):
            return index, top
        if token.type == "LBRACE":
            nested += 1
        elif token.type == "RBRACE":
            if nested == 0 and blocks:
                return (index, inside) if fresh else (index + 1, top)
            nested = max(0, nested - 1)
        elif nested == 0 and blocks and fresh:
            if token.type in MIX_ITEMS and inside[2].type == "MIX":
                return index, written("language", "1", "mix", "{")
            if token.type == "NAME" and follows == "EQUAL" and inside[-1].type == "LBRACE":
                if inside[2].type != "MIX" and not brackets:
                    return index, inside
    return len(tokens), top


def _starts_item(token: Token, follows: str) -> bool:
    # `extends` and `language` have their own place; a keyword before a sign is a stray word.
    return follows not in ("COMMA", "LPAR", "RPAR", "RSQB", "PLUS", "STAR", "BY")


def _opened(blocks: list[_Block]) -> list[Token]:
    """Tokens after which the parser stands inside the open blocks, at their places in the text."""
    if not blocks:
        return written("language", "1", "train", "{")
    outer = blocks[0]
    assert outer.keyword is not None
    if outer.keyword.type in ("MIX", "EXPECT"):
        opened = [*written("language", "1"), outer.keyword, outer.brace]
        for block in blocks[1:]:
            opened += [_as("PRIVATE", block.keyword), *written("x"), block.brace]
        return opened
    # Every settings block has one grammar, so one kind stands for all.
    return [*written("language", "1"), _as("TRAIN", outer.keyword), outer.brace]


def _as(kind: str, token: Token) -> Token:
    """The same word at the same place, read as another keyword."""
    return token.new_borrow_pos(kind, str(token), token)


def _end_token(source: Source, tokens: list[Token]) -> Token:
    from lark import Token

    # The end is shown on the last line that holds something, not after the empty lines below.
    last = tokens[-1].end_pos
    return Token(END, "", last, *source.position(last), *source.position(last), last)
