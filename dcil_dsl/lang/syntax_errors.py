"""One sentence for one refused token.

In:   a Situation: the tokens, which of them was refused, what could have stood there.
Out:  Explained: the Diagnostic, and where reading may resume.
Not:  nothing is read; parse.py finds the situations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import Diagnostic, Label, Source, Span
from dcil_dsl.diagnostics.suggest import did_you_mean, nearest
from dcil_dsl.lang.tokens import END, clipped, literals
from dcil_dsl.words.blocks import PARTS
from dcil_dsl.words.registry import own_words

if TYPE_CHECKING:
    from lark import Token


BLOCKS = ("RECIPE", "MODEL", "DATA", "PRUNING", "MIX", "TRAIN", "EXPECT")
ITEMS = (*BLOCKS, "LET", "LAYERS", "PRUNE", "KEEP", "LANGUAGE", "EXTENDS")
MIX_ITEMS = ("PATH", "UPDATE", "PRIVATE", "LOSS", "DEPLOY")
UNITS = ("epochs", "steps", "ep", "epoch", "step", "run")

_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "__ANON_0"}
_KINDS = {
    "NAME": "a name",
    "TYPE": "a type such as `Conv2d`",
    "STRING": "a quoted text",
    "REGEX": 'a pattern such as `re"..."`',
    "NUMBER": "a number",
    "PERCENT": "a percentage",
    "TIME": "a time such as `5ep`",
    "RATIO": "a ratio such as `2:4`",
    "COMPARE": "a comparison such as `>=`",
}


@dataclass(frozen=True)
class Situation:
    """`tokens[at]` was refused, reading from `start` on, where `accepts` could have stood.

    block: keyword and `{` of the innermost open block; bracket: the innermost open `(` or `[`.
    """

    source: Source
    tokens: tuple[Token, ...]
    at: int
    start: int
    accepts: frozenset[str]
    block: tuple[Token, Token] | None
    in_mix: bool
    bracket: Token | None

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def near(self, distance: int) -> Token | None:
        """The token `distance` places away, None beyond the ends."""
        index = self.at + distance
        return self.tokens[index] if 0 <= index < len(self.tokens) else None

    def kind(self, distance: int) -> str:
        token = self.near(distance)
        return END if token is None else token.type

    def adjacent(self, first: int, second: int, kind: str) -> bool:
        """Whether two neighbours are of one kind, with nothing between them."""
        a, b = self.near(first), self.near(second)
        if a is None or b is None or not a.type == b.type == kind:
            return False
        return bool(a.end_pos == b.start_pos)

    def together(self, first: int, second: int) -> bool:
        """Whether two neighbours stand on one line."""
        a, b = self.near(first), self.near(second)
        return a is not None and b is not None and a.end_line == b.line


@dataclass(frozen=True)
class Explained:
    diagnostic: Diagnostic
    resume: int | None = None  # a token index to go on at; None: at the refused one


def of(source: Source, token: Token) -> Span:
    return Span(source, token.start_pos, token.end_pos)


def misspelt(token: Token, words: Iterable[str]) -> str | None:
    """The help for a name that is nearly one of some words."""
    return did_you_mean(str(token), words) if token.type in ("NAME", "TYPE") else None


def explain(situation: Situation) -> Explained:
    """Explain the error by the first rule that applies."""
    rules = (
        _no_value,
        _unit,
        _moment,
        _scalar,
        _still_open,
        _too_many_closed,
        _place,
        _comment,
        _misspelt,
        _reserved,
    )
    for rule in rules:
        explained = rule(situation)
        if explained is not None:
            return explained
    return _general(situation)


def _no_value(s: Situation) -> Explained | None:
    """`momentum =` and then the next setting, the next statement or the end of the block."""
    if s.token.type == "EQUAL" and s.kind(-1) == "NAME" and s.kind(-2) == "EQUAL":
        equal, resume = -2, s.at - 1
    elif s.kind(-1) == "EQUAL" and s.token.type in (END, "RBRACE", *ITEMS, *MIX_ITEMS):
        if s.token.type not in (END, "RBRACE") and s.together(-1, 0):
            return None  # `score = train`: a reserved word was meant as the value
        equal, resume = -1, s.at
    else:
        return None
    name, sign = s.near(equal - 1), s.near(equal)
    if name is None or name.type != "NAME":
        return None
    return _say(
        s,
        "E106",
        f"`{name}` has no value",
        name,
        sign,
        label="a value is missing after `=`",
        resume=resume,
    )


def _unit(s: Situation) -> Explained | None:
    """`3 epoks` is a number and then a name, which may look like the next setting."""
    if s.token.type in ("NAME", "TYPE") and s.kind(-1) in ("NUMBER", "PERCENT"):
        number, unit, resume = s.near(-1), s.token, s.at + 1
        plausible = s.together(-1, 0) and s.kind(-2) != "LANGUAGE"
    elif s.kind(-1) == "NAME" and s.kind(-2) in ("NUMBER", "PERCENT") and "EQUAL" in s.accepts:
        number, unit, resume = s.near(-2), s.near(-1), s.at
        plausible = s.together(-2, -1)
    else:
        return None
    if not plausible or number is None or unit is None:
        return None
    near = nearest(str(unit), UNITS)
    if near is None and s.bracket is not None and s.kind(1) == "EQUAL":
        return None  # `sgd(lr=0.1 momentum=0.9)`: a comma is missing
    is_share = number.type == "PERCENT"
    if unit in UNITS and "e" in number:
        meant = f"{Decimal(str(number)):f} {unit}"
        help = f"did you mean `{meant}`?" if len(meant) <= 20 and unit != "run" else None
        fact = f"a number with an exponent, `{number}`, takes no unit of time"
        return _say(s, "E107", fact, number, unit, help=help, resume=resume)
    if is_share and near != "run":
        return None
    help = "a time is written `5ep`, `16 steps` or `75% run`"
    if near is not None and (near == "run") == is_share:
        help = f"did you mean `{number} {near}`?"
    elif number.end_pos == unit.start_pos:
        help = _of_digits(str(number), str(unit)) or help
    elif unit == "or":
        help = "conditions are joined by `and`, selectors by `,`"
    return _say(s, "E107", f"`{unit}` is not a unit of time", unit, help=help, resume=resume)


def _of_digits(number: str, more: str) -> str | None:
    """The spelling of a number that is written as in another language."""
    if more == "E":
        return "an exponent is written `1e-4`"
    if more.strip("_").isdigit():
        return f"did you mean `{number}{more.replace('_', '')}`?"
    return None


def _moment(s: Situation) -> Explained | None:
    """A number or a percentage after `from` or `until`."""
    token = s.token
    if "TIME" not in s.accepts or "PERCENT" in s.accepts or token.type not in ("NUMBER", "PERCENT"):
        return None
    if token.type == "PERCENT":
        fact, help = "a percentage is not a time", f"did you mean `{token} run`?"
    else:
        fact, help = "a number is not a time", f"did you mean `{token}ep` or `{token} steps`?"
    return _say(s, "E107", fact, token, help=help, resume=s.at + 1)


def _scalar(s: Situation) -> Explained | None:
    """A percentage as the share of a path or the weight of a loss."""
    if s.token.type != "PERCENT" or s.kind(1) != "STAR" or "NUMBER" not in s.accepts:
        return None
    number = float(str(s.token)[:-1]) / 100
    return _say(
        s,
        "E107",
        "a factor is a number, not a percentage",
        s.token,
        help=f"did you mean `{number:.12g}`?",
        resume=s.at + 1,
    )


def _still_open(s: Situation) -> Explained | None:
    """A statement begins, or the text ends, inside a block that was never closed."""
    token = s.token
    if token.type == END and s.block is not None:
        keyword, brace = s.block
        return _say(
            s,
            "E104",
            f"the recipe ends, but `{keyword}` is still open",
            token,
            label="a `}` is missing before this",
            others=(Label(of(s.source, brace), "opened here"),),
        )
    if s.block is None or s.kind(1) == "EQUAL" and token.type not in ("LET", "LAYERS"):
        return None
    starts_item = token.type in ITEMS and "RBRACE" in s.accepts
    # Inside `mix`, only a block of one of its statements can be left open before the next.
    starts_mix_item = token.type in MIX_ITEMS and s.in_mix and s.block[0].type != "MIX"
    if not (starts_item or starts_mix_item and "RBRACE" in s.accepts):
        return None
    keyword, brace = s.block
    what = "block" if token.type in BLOCKS else "statement"
    return _say(
        s,
        "E104",
        f"`{token}` starts a new {what}, but `{keyword}` is still open",
        token,
        label="a `}` is missing before this",
        others=(Label(of(s.source, brace), "opened here"),),
    )


def _too_many_closed(s: Situation) -> Explained | None:
    if s.token.type in ("RBRACE", "RPAR", "RSQB") and s.token.type not in s.accepts:
        opener = {"RBRACE": "{", "RPAR": "(", "RSQB": "["}[s.token.type]
        is_open = s.block if s.token.type == "RBRACE" else s.bracket
        if not is_open:
            return _say(
                s,
                "E115",
                f"this `{s.token}` closes nothing",
                s.token,
                label=f"no `{opener}` is open here",
                resume=s.at + 1,
            )
    return None


def _place(s: Situation) -> Explained | None:
    """A right word where it cannot stand."""
    kind = s.token.type
    at_item = "PRUNE" in s.accepts
    if kind == "LANGUAGE" and s.kind(1) == "NUMBER" and at_item:
        return _say(s, "E113", "`language` is said once, first", s.token, resume=s.at + 2)
    if kind == "EXTENDS" and s.kind(1) == "STRING" and at_item:
        return _say(
            s, "E113", "`extends` stands directly after `language 1`", s.token, resume=s.at + 2
        )
    if kind in MIX_ITEMS and s.kind(1) != "EQUAL" and not s.in_mix:
        if at_item or "RBRACE" in s.accepts:
            return _say(s, "E113", f"`{s.token}` stands only inside `mix {{ }}`", s.token)
    if kind == "NAME" and s.kind(1) == "EQUAL" and at_item:
        return _say(
            s,
            "E113",
            f"the setting `{s.token}` stands outside of a block",
            s.token,
            help=f"a value to be used by name is written `let {s.token} = ...`",
        )
    if kind == "NAME" and s.kind(1) == "EQUAL" and "DEPLOY" in s.accepts:
        return _say(
            s,
            "E113",
            f"`mix` has no setting `{s.token}`",
            s.token,
            help="`mix` holds `path`, `update`, `private`, `loss` and `deploy`",
        )
    return None


def _comment(s: Situation) -> Explained | None:
    slashes = s.token.type == "SLASH" and (s.kind(1) == "SLASH" or s.kind(-1) == "SLASH")
    if slashes or s.token.type == "SLASH" and s.kind(1) == "STAR":
        return _say(s, "E102", "this is not a comment", s.token, help="a comment starts with `#`")
    if s.token.type in ("NAME", "TYPE"):  # `-- how much` is read as minus minus how, so far
        dashes = [d for d in (-1, -2) if s.adjacent(d - 1, d, "MINUS") and s.together(d, 0)]
        if dashes:
            return _say(
                s,
                "E102",
                "this is not a comment",
                s.near(dashes[0] - 1),
                help="a comment starts with `#`",
            )
    return None


def _misspelt(s: Situation) -> Explained | None:
    """A name where only keywords can stand."""
    if s.token.type not in ("NAME", "TYPE"):
        return None
    if "PRUNE" in s.accepts:
        words = [w for k in ITEMS if k in s.accepts for w in (literals()[k],)]
        elsewhere = [literals()[k] for k in MIX_ITEMS]
        help = misspelt(s.token, words) or misspelt(s.token, elsewhere)
        return _say(s, "E105", f"`{s.token}` is not a statement", s.token, help=help)
    if "DEPLOY" in s.accepts:
        words = [literals()[k] for k in MIX_ITEMS]
        help = misspelt(s.token, words)
        return _say(
            s,
            "E105",
            f"`{s.token}` is not a statement of `mix`",
            s.token,
            label="expected " + listed(f"`{w}`" for w in words),
            help=help,
        )
    words = [literals()[k] for k in s.accepts if k in literals() and literals()[k].isalpha()]
    if "NAME" not in s.accepts and words and nearest(str(s.token), words):
        return _say(
            s,
            "E101",
            f"expected {_expected(s)}, found `{s.token}`",
            s.token,
            help=misspelt(s.token, words),
        )
    return None


def _reserved(s: Situation) -> Explained | None:
    """A keyword where a name of the author's own is wanted."""
    word = literals().get(s.token.type, "")
    # Where layers or values are wanted, a keyword more likely means that they are missing.
    if "NAME" in s.accepts and not s.accepts & {"TYPE", "PERCENT"} and word.isalpha():
        help = f"choose another name, for example `{word}_`"
        if s.kind(-1) == "UPDATE":
            help = f"`update` takes {listed(f'`{part}`' for part in PARTS)}"
        return _say(
            s, "E112", f"`{word}` is a word of the language, not a name", s.token, help=help
        )
    return None


def _general(s: Situation) -> Explained:
    token = s.token
    what = "the end of the recipe" if token.type == END else f"`{clipped(str(token))}`"
    others: tuple[Label, ...] = ()
    if s.bracket is not None:
        others = (Label(of(s.source, s.bracket), "opened here"),)
    help = _of_layers(s)
    if help is not None:
        pass
    elif token.type == "EQUAL" and "COMPARE" in s.accepts:
        help = "write `==`, or `>=` for at least"
    elif token.type == "NAME" and s.accepts == {"STRING"}:
        help = f'write `"{clipped(str(token))}"`'
    elif token.type == "COMMA" and s.kind(-1) == s.kind(1) == "NUMBER" and _touch(s):
        help = _with_comma(str(s.near(-1)), str(s.near(1)))
    elif token.type == "MINUS" and (name := _with_minus(s)):
        help = f"a name is written with `_`: `{name}`"
    elif token.type == "TYPE" and (near := small_word(str(token))) and "NAME" in s.accepts:
        help = f"did you mean `{near}`?"
    elif token.type == "TYPE" and "NAME" in s.accepts:
        help = "a name is written in small letters, digits and `_`"
        if "STRING" in s.accepts:
            help += f'; any other as text: `"{clipped(str(token))}"`'
    elif s.kind(-2) in BLOCKS and s.accepts == {"LBRACE"}:
        help = f"a block has braces: `{s.near(-2)} {s.near(-1)} {{ }}`"
    elif s.kind(-2) == "PATH" and s.accepts == {"EQUAL"}:
        help = f"a path has a view: `path {s.near(-1)} = masked`"
    elif s.kind(-1) == "NAME" and s.accepts == {"EQUAL"}:
        help = f"write `{s.near(-1)} = ...`"
    return _say(
        s, "E101", f"expected {_expected(s)}, found {what}", token, others=others, help=help
    )


def _of_layers(s: Situation) -> str | None:
    """What people write in selectors that other tools take."""
    if s.token.type == "STAR" and {"TYPE", "REGEX"} <= s.accepts:
        return '`"**"` selects every layer'
    if s.token.type == "REGEX" and s.kind(-1) == "IN":
        return f"`in` takes a quoted name with `*`; a pattern selects layers alone: `{s.token}`"
    if s.token.type == "COMMA" and s.bracket is not None and s.kind(-1) == "NUMBER":
        at = s.tokens.index(s.bracket)
        if at > 1 and s.tokens[at - 1].type == "COMPARE":
            alone = f"{s.tokens[at - 2]} {s.tokens[at - 1]} {s.near(-1)}"
            return f"a tuple compares so in all its entries: `{alone}`"
    return None


def _with_comma(before: str, after: str) -> str | None:
    """`1,024` has its thousands apart, `0,5` is a decimal fraction."""
    if not (before.isdigit() and after.isdigit()):
        return None
    if len(after) == 3 and int(before) > 0:
        return f"digits stand together: `{before}{after}`"
    return f"did you mean `{before}.{after}`?"


def _with_minus(s: Situation) -> str | None:
    """`batch-size` as a name: `batch_size`."""
    is_name = s.kind(-1) == "NAME" and str(s.near(1) or "")[:1].isalnum()
    return f"{s.near(-1)}_{s.near(1)}" if is_name and _touch(s) else None


def _touch(s: Situation) -> bool:
    """Whether the token stands between its neighbours without a space."""
    before, after = s.near(-1), s.near(1)
    if before is None or after is None:
        return False
    return bool(before.end_pos == s.token.start_pos and s.token.end_pos == after.start_pos)


def small_word(name: str) -> str | None:
    """`SGD`, `True` or `RandomResizedCrop` as the word of the language that it is, if it is one."""
    small = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    known = {word for table in own_words().values() for word in table}
    return small if small in known | {"true", "false", "none"} else None


def _expected(s: Situation) -> str:
    """The accept set in words: whole classes of tokens by one name."""
    left, words = set(s.accepts), []
    for group, word in (
        ({"PRUNE", "TRAIN"}, "a statement"),
        ({"PERCENT", "RATIO", "TRUE"}, "a value"),
        ({"TYPE", "REGEX"}, "layers (a type, a name or a quoted path)"),
        ({"DEPLOY", "UPDATE"}, "a statement of `mix`"),
        ({"TIME"}, "a time such as `5ep`"),
    ):
        if group <= left:
            words.append(word)
            left -= {
                "a statement": set(ITEMS),
                "a value": {*_KINDS, "TRUE", "FALSE", "NONE", "LSQB", "LPAR", "MINUS"},
                "a statement of `mix`": set(MIX_ITEMS),
            }.get(word, {*_KINDS, "FIRST", "LAST"})
    # Every value may go on with an operator; saying so helps only where nothing else can stand.
    left = (left - _OPERATORS) or (left if not words else set())
    left.discard(END)
    order = sorted(left, key=lambda k: (k not in _KINDS, literals().get(k, "")))
    words += [_KINDS.get(kind) or f"`{literals().get(kind, '..')}`" for kind in order]
    return listed(words) if words else "the end of the recipe"


def listed(words: Iterable[str]) -> str:
    """`a`, `b` or `c`."""
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _say(
    s: Situation,
    code: str,
    message: str,
    first: Token,
    last: Token | None = None,
    *,
    label: str = "",
    others: tuple[Label, ...] = (),
    help: str | None = None,
    resume: int | None = None,
) -> Explained:
    span = Span(s.source, first.start_pos, (last or first).end_pos)
    return Explained(Diagnostic(code, message, span, label, others, help), resume)
