"""The exceptions that carry diagnostics, and the list in which a stage collects them.

In:   the mistakes of one stage; what is wrong with a command, a model or data.
Out:  one RecipeError with every mistake, or an InputError.
Not:  no layout (render.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from dcil_dsl.diagnostics.diagnostic import MOST_ERRORS, Diagnostic
from dcil_dsl.diagnostics.render import render_all
from dcil_dsl.diagnostics.source import Span


class RecipeError(Exception):
    """A recipe is wrong, alone or for the given model. `.diagnostics` has every mistake."""

    def __init__(self, diagnostics: list[Diagnostic] | tuple[Diagnostic, ...]):
        self.diagnostics = list(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        """All of them with their lines and carets."""
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
