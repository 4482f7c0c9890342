"""Recipes in Pygments: Sphinx, MkDocs and rich highlight blocks that are called `prune`.

In:   the text of a recipe, finished or not.
Out:  tokens of Pygments; the entry point `pygments.lexers` in pyproject.toml names the class.
Not:  no meaning: a name before `=` is a setting, one before `(` is a word.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, words
from pygments.token import (
    Comment,
    Error,
    Keyword,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Whitespace,
)

from dcil_dsl.lang.statements import CLAUSES, STATEMENTS

CONSTANTS = ("true", "false", "none")
TIME = r"[0-9]+(\.[0-9]+)?([ \t]*(epochs|epoch|ep|steps|step)|%[ \t]*run)(?![a-z0-9_])"


class PruneLexer(RegexLexer):
    """The lexer of `.prune` files."""

    name = "dcil recipe"
    aliases: ClassVar[list[str]] = ["prune", "dcil"]
    filenames: ClassVar[list[str]] = ["*.prune"]
    mimetypes: ClassVar[list[str]] = ["text/x-prune"]
    tokens: ClassVar[dict[str, list[Any]]] = {
        "root": [
            (r"\s+", Whitespace),
            (r"#.*", Comment.Single),
            (r're"[^"\n]*"', String.Regex),
            (r'"[^"\n]*"', String.Double),
            (TIME, Number),
            (r"[0-9]+(\.[0-9]+)?%", Number),
            (r"[0-9]+:[0-9]+", Number),
            (r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", Number),
            (words(CONSTANTS, prefix=r"\b", suffix=r"\b"), Keyword.Constant),
            (
                r"\b(let|layers|path)(\s+)([a-z_][a-z0-9_]*)",
                bygroups(Keyword.Declaration, Whitespace, Name.Variable),
            ),
            (words((*STATEMENTS, *CLAUSES), prefix=r"\b", suffix=r"\b"), Keyword),
            (r"[a-z_][a-z0-9_]*(?=\s*=(?!=))", Name.Attribute),
            (r"[a-z_][a-z0-9_]*(?=\s*\()", Name.Function),
            (r"[A-Z][A-Za-z0-9_]*", Name.Class),
            (r"[a-z_][a-z0-9_]*", Name),
            (r"==|!=|<=|>=|\.\.|[-+*/=<>]", Operator),
            (r"[{}()\[\],]", Punctuation),
            (r".", Error),
        ]
    }
