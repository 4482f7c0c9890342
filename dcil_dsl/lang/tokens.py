"""A recipe file to text, and text to tokens.

In:   the path of a recipe file; a Source.
Out:  lark's tokens and the comments between them; E102, E103 and E110 for characters that are in
      no word of the language.
Not:  no order of words (parse.py). Lark is imported when the first text arrives, so that importing
      the language costs nothing.
"""

from __future__ import annotations

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import Diagnostics, RecipeError, Source, Span
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS

if TYPE_CHECKING:
    from lark import Lark, Token

MOST_BYTES = 2_000_000  # of a recipe; a thousand times a long one
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
    """prune.lark, from an installed wheel or from the repository."""
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


# -- tokens ----------------------------------------------------------------------------------------


# What people write from the habit of another language: (fact, help, what to read instead).
# Reading on with the intended character reports each slip once.
_HABITS = {
    ":": ("`:` is not used here", "settings use `=`; a ratio such as `2:4` has no spaces", "="),
    ";": ("`;` is not used here", "no terminator is needed", " "),
    "%": ("this `%` does not follow a number", "write the percent right after it: `90%`", " "),
    ".": ("this `.` is not part of a number", "write `0.5`, and a range as `0ep..5ep`", " "),
    "!": ("`!` is not used here", "write `!=` to compare, `except` to leave out", " "),
    "&": ("`&` is not used here", "write `and`", " "),
    "|": ("`|` is not used here", "write `,` between the parts of a selector", " "),
    "\u00a0": ("a no-break space is not white space here", "type an ordinary space", " "),
    "\u2013": ("this dash is not a minus", "write `-`", "-"),
    "\u2014": ("this dash is not a minus", "write `-`", "-"),
    "\u2212": ("this minus is not the ASCII one", "write `-`", "-"),
}
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:[.:]\w+)+")
_LETTER = re.compile(r"[A-Za-z_]")
_BEFORE = re.compile(r"(?:\w+[.:]?)*")  # a dotted name, backwards
_QUOTES = "'`\u2018\u2019\u201c\u201d"
_RUN = re.compile(r"""[^\sA-Za-z0-9_"#{}()\[\]=,+\-*/<>:;%.!&|'`]+""")


def lex(
    source: Source, found: Diagnostics, quoted: Source | None = None
) -> tuple[list[Token], tuple[tuple[int, str], ...]]:
    """The tokens and comments of a text.

    Stray characters are reported, then read as the intended ones, at the same offsets.
    `quoted`: the source that messages point into, where it is not the one that is read.
    """
    from lark import UnexpectedCharacters

    text, quoted = source.text, quoted or source
    while True:
        state = grammar().parse_interactive(text)
        tokens: list[Token] = []
        try:
            tokens.extend(state.lexer_thread.lex(state.parser_state))
            comments = comments_between(text, tokens)
            _one_line_each(comments, quoted, found)
            return tokens, comments
        except UnexpectedCharacters as error:
            text = _note(text, error.pos_in_stream, quoted, found)
        if len(found.errors) >= MAX_ERRORS:
            found.stop_if_wrong()


def _one_line_each(
    comments: tuple[tuple[int, str], ...], source: Source, found: Diagnostics
) -> None:
    """E110 for a comment with a carriage return inside: an editor may show what follows as a line
    of its own, and here it would be part of the comment."""
    for start, text in comments:
        inside = text.rstrip("\r").find("\r")
        if inside >= 0:
            found.add(
                "E110",
                "a carriage return alone does not end a line",
                Span(source, start + inside, start + inside + 1),
                label="what follows is still the comment",
                help="save the recipe with line feeds",
            )
            return


def _note(text: str, at: int, quoted: Source, found: Diagnostics) -> str:
    """Note the stray character at an offset; the text with something readable in its place."""
    sign = text[at]
    line_end = text.find("\n", at)
    line_end = len(text) if line_end < 0 else line_end

    def here(stop: int) -> Span:
        return Span(quoted, at, stop)

    if sign == '"':
        found.add(
            "E103",
            "this string is not closed",
            here(line_end),
            label='no `"` before the end of the line',
        )
        return text[:at] + _string(text[at + 1 : line_end]) + text[line_end:]
    if sign in _QUOTES:
        return _other_quotes(text, at, line_end, quoted, found)
    if sign == "\0":
        stop = at + len(text[at:]) - len(text[at:].lstrip("\0"))
        found.add(
            "E110",
            "a NUL character is not text",
            here(stop),
            help="save the recipe as plain UTF-8 text",
        )
        return text[:at] + " " * (stop - at) + text[stop:]
    if sign in ".:" and (name := _foreign_name(text, at)) is not None:
        return _quoted_name(text, name, quoted, found)
    if sign in _HABITS:
        fact, help, instead = _HABITS[sign]
        found.add("E102", fact, here(at + 1), help=help)
        return text[:at] + instead + text[at + 1 :]
    run = _RUN.match(text, at)
    stop = run.end() if run else at + 1
    found.add("E102", f"{shown(text[at:stop])} has no meaning in a recipe", here(stop))
    return text[:at] + " " * (stop - at) + text[stop:]


def _foreign_name(text: str, at: int) -> re.Match[str] | None:
    """The name around a `.` or `:` that is one elsewhere: `layer1.0.conv1`, `nn.Conv2d`, and after
    `model` what --model takes."""
    start = text.rfind("\n", 0, at) + 1
    before = _BEFORE.match(text[start:at][::-1])  # always: it may be empty
    assert before is not None
    # Tried where it has to begin, and nowhere else: a word may be as long as the file.
    letter = _LETTER.search(text, at - before.end(), at)
    name = letter and _DOTTED.match(text, letter.start())
    if name is None or name.end() <= at:
        return None
    is_model = text[start : name.start()].split()[-1:] == ["model"]
    return name if is_model or ":" not in name[0] else None


def _quoted_name(text: str, name: re.Match[str], quoted: Source, found: Diagnostics) -> str:
    """Note a name that needs quotes, or a class with its module before it; read as was meant."""
    start, stop = name.span()
    last = name[0].rpartition(".")[2]
    is_class = last[:1].isupper() and ":" not in name[0]
    found.add(
        "E102",
        f"`{clipped(name[0])}` is not a name here",
        Span(quoted, start, stop),
        help=f"a class is named alone: `{last}`"
        if is_class
        else f'write it in quotes: `"{clipped(name[0])}"`',
    )
    instead = last.rjust(stop - start) if is_class else _string(name[0][1:])
    return text[:start] + instead + text[stop:]


def _other_quotes(text: str, at: int, line_end: int, quoted: Source, found: Diagnostics) -> str:
    close = next((i for i in range(at + 1, line_end) if text[i] in _QUOTES), None)
    if close is None:
        found.add(
            "E102",
            f"{shown(text[at])} has no meaning in a recipe",
            Span(quoted, at, at + 1),
            help='strings use double quotes: `"text"`',
        )
        return text[:at] + " " + text[at + 1 :]
    inside = text[at + 1 : close]
    found.add(
        "E102", "strings use double quotes", Span(quoted, at, close + 1), help=f'write `"{inside}"`'
    )
    return text[:at] + _string(inside + " ") + text[close + 1 :]


def _string(inside: str) -> str:
    """A string literal one character longer than `inside`, in the place of a broken one."""
    if not inside:
        return "0"
    return '"' + inside[:-1].replace('"', " ") + '"'


def clipped(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def shown(characters: str) -> str:
    """Characters for a message: themselves where they print, their code points where not."""
    clipped = characters if len(characters) <= 20 else characters[:17] + "..."
    if clipped.isprintable() and not clipped.isspace():
        return f"`{clipped}`"
    more = " ..." if len(characters) > 4 else ""
    return " ".join(f"U+{ord(c):04X}" for c in characters[:4]) + more


# -- files -----------------------------------------------------------------------------------------


class Unreadable(Exception):
    """A file cannot be read; the message says why."""


def read(path: Path, is_parent: bool = False) -> str:
    """The text of a recipe file.

    Raises Unreadable where it cannot be read, RecipeError (E110) where it is not UTF-8.
    """
    return decode(read_bytes(path, is_parent), str(path))


def read_bytes(path: Path, is_parent: bool = False) -> bytes:
    """At most MOST_BYTES of a file, or Unreadable.

    What a command names may be a pipe, such as /dev/stdin; a parent is a regular file, for a
    recipe must not make its reader wait.
    """
    try:
        mode = os.stat(path).st_mode
        if is_parent and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Unreadable("it is a pipe or a device, not a regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(reason.lower()) from None
    if len(content) > MOST_BYTES:
        raise Unreadable(f"it is larger than {MOST_BYTES // 1_000_000} MB")
    return content


def decode(content: bytes, name: str) -> str:
    """The text of a recipe's bytes; a leading byte order mark is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source = Source(content.decode("utf-8", "replace"), name)
        start = len(content[: error.start].decode("utf-8", "replace"))
        wrong = Diagnostics()
        wrong.add(
            "E110",
            "the recipe is not UTF-8 text",
            Span(source, start, start + 1),
            label=f"byte 0x{content[error.start]:02x}",
            help="save it as plain UTF-8 text",
        )
        raise RecipeError(wrong.errors) from None


def recipes_in(folder: Path) -> list[str]:
    """The names of the recipes in a folder."""
    try:
        return sorted(p.name for p in folder.glob("*.prune"))
    except (OSError, ValueError):
        return []
