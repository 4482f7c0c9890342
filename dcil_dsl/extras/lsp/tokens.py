"""The tokens of a text that may not parse: what highlighting and completion read.

In:   the text of a recipe, finished or not.
Out:  Token values and comments, by the patterns of the grammar; stray characters are left out.
Not:  no diagnostics (lang/tokens.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from dcil_dsl.lang.statements import CLAUSES, STATEMENTS


@dataclass(frozen=True)
class Lexeme:
    """kind: comment, string, regex, amount, type, keyword, name or sign."""

    kind: str
    text: str
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.text)


@cache
def _pattern() -> re.Pattern[str]:
    from dcil_dsl.lang.tokens import grammar

    from_grammar = {t.name: t.pattern.value for t in grammar().terminals}
    amounts = "|".join(from_grammar[name] for name in ("TIME", "PERCENT", "RATIO", "NUMBER"))
    return re.compile(
        r"(?P<comment>#[^\n]*)"
        r'|(?P<regex>re"[^"\n]*"?)'
        r'|(?P<string>"[^"\n]*"?)'
        rf"|(?P<amount>{re.sub('[(](?![?])', '(?:', amounts)})"
        rf"|(?P<type>{from_grammar['TYPE']})"
        rf"|(?P<name>{from_grammar['NAME']})"
        rf"|(?P<sign>\.\.|{from_grammar['COMPARE']}|[-+*/=,(){{}}\[\]])"
    )


def lexemes(text: str) -> list[Lexeme]:
    """All of them, in order."""
    found = []
    for match in _pattern().finditer(text):
        kind = match.lastgroup or "sign"
        if kind == "name" and (match[0] in STATEMENTS or match[0] in CLAUSES):
            kind = "keyword"
        found.append(Lexeme(kind, match[0], match.start()))
    return found
