"""What may stand at a place of a text that may not parse yet.

In:   the lexemes before the place.
Out:  Surroundings: the statement, the open call or block, the setting whose value is written.
Not:  no suggestions (completion.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dcil_dsl.extras.lsp.tokens import Lexeme
from dcil_dsl.lang.describe import SETTINGS, SettingHelp, WordHelp, help_of_word
from dcil_dsl.lang.statements import STATEMENTS
from dcil_dsl.words.registry import words_at

IN_MIX = ("path", "update", "private", "loss", "deploy")
OF_STATEMENT = {"to": "a target", "path": "a view", "loss": "a loss"}


@dataclass
class Frame:
    """An open bracket. kind: `{`, `(` or `[`. told: the block or word whose settings it holds."""

    kind: str
    name: str
    told: WordHelp | None = None
    setting: str | None = None
    index: int = 0  # arguments before this one
    given: set[str] = field(default_factory=set)
    place: str | None = None  # of the words that a list holds

    def help_of(self, name: str | None) -> SettingHelp | None:
        found = [one for one in self.told.settings if one.name == name] if self.told else []
        return found[0] if found else None

    @property
    def current(self) -> SettingHelp | None:
        """The setting whose value is being written; a positional argument is one too."""
        if self.setting is not None:
            return self.help_of(self.setting)
        if self.kind == "(" and self.told and self.index < len(self.told.settings):
            return self.told.settings[self.index]
        return None


@dataclass
class Surroundings:
    """statement: the keyword that is open. clause: its last keyword or sign. before: the last
    lexemes, nearest last."""

    statement: str | None = None
    clause: str | None = None
    frames: list[Frame] = field(default_factory=list)
    before: list[Lexeme] = field(default_factory=list)

    @property
    def frame(self) -> Frame | None:
        return self.frames[-1] if self.frames else None

    @property
    def last(self) -> str:
        return self.before[-1].text if self.before else ""

    @property
    def in_mix(self) -> bool:
        return bool(self.frames) and self.frames[0].name == "mix"

    @property
    def place(self) -> str | None:
        """The kind of word that may stand here."""
        frame = self.frame
        if frame is None or frame.kind == "{" and frame.setting is None:
            if self.clause == "=" and self.statement == "path":
                return "a view"
            return OF_STATEMENT.get(self.clause or "") or (
                "a loss" if self.statement == "loss" else None
            )
        if frame.kind == "[":
            return frame.place
        current = frame.current
        return None if current is None else current.place


def context_at(lexemes: list[Lexeme], offset: int) -> Surroundings:
    """The context of an offset, from what stands before it."""
    found = Surroundings()
    for one in lexemes:
        if one.stop > offset:
            break
        if one.kind != "comment":
            _read(one, found, lexemes)
            found.before.append(one)
    return found


def _read(one: Lexeme, found: Surroundings, lexemes: list[Lexeme]) -> None:
    frame = found.frame
    match one.text:
        case "{":
            statement = found.statement or ""
            told = help_of_word(SETTINGS[statement], statement) if statement in SETTINGS else None
            found.frames.append(Frame("{", statement, told))
            found.clause = "{"
        case "(" | "[":
            found.frames.append(_opened(one.text, found))
        case "}" | ")" | "]":
            if frame is not None:
                found.frames.pop()
            found.clause = one.text if one.text == "}" else found.clause
        case "," if frame is not None and frame.kind == "(":
            frame.index, frame.setting = frame.index + 1, None
        case "=" if found.before and found.before[-1].kind == "name":
            if frame is not None and frame.told is not None:
                frame.setting = found.before[-1].text
                frame.given.add(frame.setting)
            else:
                found.clause = "="
        case _ if one.kind == "keyword":
            _keyword(one.text, found)
        case _:
            pass


def _opened(kind: str, found: Surroundings) -> Frame:
    place = found.place
    if kind == "[" or not found.before or found.before[-1].kind != "name":
        return Frame(kind, "", place=place)
    word = found.before[-1].text
    also = words_at("a teacher") if place == "a view" else {}
    cls = {**words_at(place or ""), **also}.get(word)
    return Frame(kind, word, None if cls is None else help_of_word(cls))


def _keyword(word: str, found: Surroundings) -> None:
    is_statement = word in STATEMENTS and (
        word in IN_MIX if found.in_mix else not found.frames or word not in IN_MIX
    )
    frame = found.frame
    if is_statement and (frame is None or frame.kind == "{" and frame.name == "mix"):
        found.statement, found.clause = word, word
    elif frame is None or frame.name == "mix":
        found.clause = word
