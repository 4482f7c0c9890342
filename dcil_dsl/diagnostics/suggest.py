"""Suggest the nearest valid word for a misspelled one.

In:   an unknown word, and the known words.
Out:  the nearest known word, if a typing mistake explains the difference; the edits that the help
      of a diagnostic suggests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcil_dsl.diagnostics.diagnostic import Diagnostic
    from dcil_dsl.diagnostics.source import Span

LONGEST = 200  # letters of a word that may be a misspelling


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate at the least edit distance, the first of equals; None where none is near.

    Near: at most one edit in up to three letters, two in up to eight, a third of the length in
    longer words; letter case does not count. Else the only candidate that begins with the word or
    begins it, with three letters at least. Words of more than LONGEST letters have no match.
    """
    if len(word) > LONGEST:
        return None
    candidates = [one for one in dict.fromkeys(candidates) if len(one) <= LONGEST]
    allowed = 1 if len(word) <= 3 else 2 if len(word) <= 8 else min(len(word) // 3, 6)
    best: list[tuple[int, str]] = []
    for candidate in candidates:
        if abs(len(candidate) - len(word)) > allowed:
            continue
        distance = _distance(word.lower(), candidate.lower(), allowed)
        # A word with half its letters changed is another word: `l2` is not a misspelling of `lr`.
        if distance <= allowed and distance < max(len(word), len(candidate)) / 2:
            best.append((distance, candidate))
    best.sort(key=lambda pair: pair[0])
    return best[0][1] if best else _begun(word, candidates)


def _begun(word: str, candidates: list[str]) -> str | None:
    """`temp` begins `temperature`, and `data` begins `dataset`."""
    found = [c for c in candidates if min(len(c), len(word)) >= 3 and _begins(word, c)]
    return found[0] if len(found) == 1 else None


def _begins(one: str, other: str) -> bool:
    short, long = sorted((one.lower(), other.lower()), key=len)
    return long.startswith(short)


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The help line for `nearest`, None where nothing is near."""
    near = nearest(word, candidates)
    return None if near is None else f"did you mean `{near}`?"


def _distance(a: str, b: str, most: int) -> int:
    """Edits that turn a into b: insert, delete, replace, or swap two neighbours (Damerau 1964).

    A distance above `most` is `most` + 1. Only the diagonals that `most` edits reach are compared.
    """
    far = most + 1
    width = len(b) + 2
    before: list[int] = []
    row = [min(j, far) for j in range(width)]
    for i, x in enumerate(a, 1):
        first, last = max(1, i - most), min(len(b), i + most)
        older, before = before, row
        row = [far] * width
        row[0] = min(i, far)
        for j in range(first, last + 1):
            y = b[j - 1]
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row[j] = min(cost, far)
        if min(row) >= far and min(before) >= far:
            return far
    return row[len(b)]


# A help that is one or more replacements for the place of its diagnostic, and nothing else.
_REPLACES = re.compile(
    r"(?:did you mean|write|write it in quotes:|a class is named alone:|a range is written"
    r"|a share of the run is written) (`[^`]+`(?: or `[^`]+`)*)"
    r"(?:, of which .*| without quotes)?\??"
)
_SELECTS = re.compile(r"(`\"[^`]+\"`) matches \d[\d,]* layers?")
_QUOTED = re.compile("`([^`]+)`")
_WORD = re.compile(r"[A-Za-z_]\w*")
_AMOUNT = re.compile(r"[0-9.]+[ \t]*$")


def replacements(diagnostic: Diagnostic) -> list[tuple[Span, str]]:
    """The edits that the help of a diagnostic suggests: places, and the text to put there.

    None of them where the help is an explanation or an example, or names something to add.
    """
    span, help = diagnostic.span, diagnostic.help
    if span is None or help is None or span.start == span.stop:
        return []
    found = _REPLACES.fullmatch(help) or _SELECTS.fullmatch(help)
    if found is None or "..." in found[1]:
        return []
    edits = [_edit(span, text, help) for text in _QUOTED.findall(found[1])]
    return [edit for edit in edits if edit is not None]


def _edit(span: Span, text: str, help: str) -> tuple[Span, str] | None:
    """The smallest place that the text replaces."""
    given, before = span.text, span.source.text[: span.start]
    if help.startswith("a share of the run") and text != f"{given} run":
        return None  # of a sum, of which it is one side
    if given.startswith('"') and not text.startswith('"') and "quotes" not in help:
        return span, f'"{text}"'
    if text[0].isdigit() and not given[0].isdigit():  # the unit alone is marked
        amount = _AMOUNT.search(before)
        start = span.start if amount is None else amount.start()
        return replace(span, start=start), text
    whole = span.source.text[max(span.stop - len(text), 0) : span.stop]
    if "," in whole and whole.replace(",", ".") == text:  # `1,5` of which `5` is marked
        return replace(span, start=span.stop - len(text)), text
    if "(" in given and _WORD.fullmatch(text):  # a call, of which one word is meant
        words = {word[0]: word for word in _WORD.finditer(given)}
        near = nearest(text, words)
        if near is None:
            return None
        if near == text:  # the word without its parentheses
            return span, text
        start = span.start + words[near].start()
        return replace(span, start=start, stop=start + len(near)), text
    return span, text
