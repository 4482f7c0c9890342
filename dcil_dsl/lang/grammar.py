"""The parser that grammar/prune.lark describes, and how its terminals are written.

In:   prune.lark, from the wheel or from the repository.
Out:  grammar(), built once; the spelling of its terminals; tokens and comments of a text.
Not:  nothing is parsed here (parse.py). Lark is imported when the first text arrives, so that
      importing the language costs nothing.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark import Lark, Token

END = "$END"  # lark's name for the end of the text
_COMMENT = re.compile(r"#[^\n]*")


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
