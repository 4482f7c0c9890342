"""What is wrong, as a value.

In:   facts found by a stage, each with the place in the recipe it is about.
Out:  Diagnostic values, gathered by Diagnostics and raised together as one RecipeError.
Not:  no drawing (render.py), no text of the codes (codes.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dcil_dsl.diagnostics.source import Span

MAX_ERRORS = 20  # more than a person reads at once; the count of the rest is said
MOST_ERRORS = 100  # after which a stage ends: what is wrong so often is made, not written
LONGEST_WORD, LONGEST_TEXT = 200, 1000  # characters of a message; a recipe's names have no limit
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


@dataclass(frozen=True)
class Label:
    """A second place that explains the first."""

    span: Span
    text: str = ""

    def __post_init__(self):
        object.__setattr__(self, "text", bounded(self.text))


@dataclass(frozen=True)
class Diagnostic:
    """One fact. `message` stands alone on one line: lower case, no period.

    code   E1xx syntax, E2xx the recipe by itself, E3xx the recipe against the model,
           E4xx the graph; W the same for warnings.
    label  says why here; `others` say because of that.
    help   at most one, and something that can be typed.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    others: tuple[Label, ...] = ()
    help: str | None = None

    def __post_init__(self):
        for name in ("message", "label", "help"):
            object.__setattr__(self, name, bounded(getattr(self, name)))

    @property
    def is_error(self) -> bool:
        return self.code.startswith("E")


class RecipeError(Exception):
    """A recipe is wrong, by itself or for the given model. `.diagnostics` says all of it."""

    def __init__(self, diagnostics: list[Diagnostic] | tuple[Diagnostic, ...]):
        self.diagnostics = list(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        """All of them with their lines and carets."""
        from dcil_dsl.diagnostics.render import render_all

        return render_all(self.diagnostics)

    def __reduce__(self):
        return type(self), (self.diagnostics,)  # pickle would hand over the text


class RecipeWarning(UserWarning):
    """A recipe is legal and probably not what was meant."""


class InputError(Exception):
    """The command, the model or the data is wrong or missing: exit status 2.

    `message` is a fact on one line; `help` says what to type or where to look, on any number.
    """

    def __init__(self, message: str, help: str | None = None):
        self.message, self.help = message, help
        super().__init__(message if help is None else f"{message}\n{help}")


@dataclass
class Diagnostics:
    """What one stage has found. Errors wait until the stage ends, so that all are told at once."""

    found: list[Diagnostic] = field(default_factory=list)
    _known: set[Diagnostic] = field(default_factory=set, init=False, repr=False, compare=False)

    def add(self, code: str, message: str, span: Span | None = None, **more) -> None:
        """Note a fact. `more` takes the other fields of Diagnostic. The same fact is noted once."""
        self.note(Diagnostic(code, message, span, **more))

    def note(self, diagnostic: Diagnostic) -> None:
        """Note a fact once. RecipeError with all of them at the error number MOST_ERRORS."""
        if len(self._known) != len(self.found):  # those that it began with
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
            raise RecipeError(sorted(self.errors, key=lambda d: d.span.start if d.span else -1))


def bounded(text: str | None) -> str | None:
    """A text for people, cut where a name or a list in it goes on and on."""
    if text is None or len(text) <= LONGEST_WORD:
        return text
    text = _LONG_WORD.sub(lambda word: f"{word[0][: LONGEST_WORD - 3]}...", text)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
