"""Diagnostics as values, and the exceptions that carry them.

In:   mistakes found by a stage, each with its place in the recipe.
Out:  Diagnostic values, collected by Diagnostics and raised together as one RecipeError.
Not:  no layout (render.py), no meaning of the codes (codes.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dcil_dsl.diagnostics.source import Span

MAX_ERRORS = 20  # shown in full; of the rest the count is given
MOST_ERRORS = 100  # the stage ends here: a file with more mistakes was generated, not written
LONGEST_WORD, LONGEST_TEXT = 200, 1000  # characters of a message; names in recipes have no limit
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


@dataclass(frozen=True)
class Label:
    """A second place that explains the first."""

    span: Span
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", bounded(self.text))


@dataclass(frozen=True)
class Diagnostic:
    """One mistake. `message` stands alone on one line: lower case, no period.

    code   E1xx syntax, E2xx the recipe alone, E3xx the recipe against the model,
           E4xx the graph; W the same for warnings.
    label  what is wrong at `span`; `others` are the places that explain why.
    help   a remedy, preferably something to type.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    others: tuple[Label, ...] = ()
    help: str | None = None

    def __post_init__(self) -> None:
        for name in ("message", "label", "help"):
            object.__setattr__(self, name, bounded(getattr(self, name)))

    @property
    def is_error(self) -> bool:
        return self.code.startswith("E")


class RecipeError(Exception):
    """A recipe is wrong, alone or for the given model. `.diagnostics` has every mistake."""

    def __init__(self, diagnostics: list[Diagnostic] | tuple[Diagnostic, ...]):
        self.diagnostics = list(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        """All of them with their lines and carets."""
        from dcil_dsl.diagnostics.render import render_all

        return render_all(self.diagnostics)

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Diagnostic]]]:
        return type(self), (self.diagnostics,)  # pickle would pass on the text alone


class RecipeWarning(UserWarning):
    """A recipe is valid but probably not what its author meant."""


class InputError(Exception):
    """The command, the model or the data is wrong or missing: exit status 2.

    `message` states the mistake on one line; `help` says what to type or where to look.
    """

    def __init__(self, message: str, help: str | None = None):
        self.message, self.help = message, help
        super().__init__(message if help is None else f"{message}\n{help}")


@dataclass
class Diagnostics:
    """The mistakes that one stage finds; they are raised together when the stage ends."""

    found: list[Diagnostic] = field(default_factory=list)
    _known: set[Diagnostic] = field(default_factory=set, init=False, repr=False, compare=False)

    def add(self, code: str, message: str, span: Span | None = None, **more: Any) -> None:
        """Record a mistake; `more` takes the other fields of Diagnostic."""
        self.note(Diagnostic(code, message, span, **more))

    def note(self, diagnostic: Diagnostic) -> None:
        """Record a mistake, once. At the error number MOST_ERRORS, raise RecipeError with all."""
        if len(self._known) != len(self.found):  # the initial ones
            self._known = set(self.found)
        if diagnostic in self._known:
            return
        self._known.add(diagnostic)
        self.found.append(diagnostic)
        if diagnostic.is_error and len(self.errors) >= MOST_ERRORS:
            self.stop_if_wrong()

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.found if d.is_error]

    @property
    def warnings(self) -> list[Diagnostic]:
        return [d for d in self.found if not d.is_error]

    def stop_if_wrong(self) -> None:
        """Raise RecipeError with every error so far, in the order of the text."""
        if self.errors:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise RecipeError with every error so far; there is one."""
        raise RecipeError(sorted(self.errors, key=lambda d: d.span.start if d.span else -1))


def bounded(text: str | None) -> str | None:
    """A message with long words, such as generated names, and a long end cut off."""
    if text is None or len(text) <= LONGEST_WORD:
        return text
    text = _LONG_WORD.sub(lambda word: f"{word[0][: LONGEST_WORD - 3]}...", text)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
