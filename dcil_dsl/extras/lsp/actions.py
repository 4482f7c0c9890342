"""Code actions: the suggestion of each diagnostic, and the rules of a sensitivity profile.

In:   an Analysis, a range of the text.
Out:  titles with edits of this text.
Not:  nothing is measured: `dcil sensitivity` writes profiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dcil_dsl.diagnostics import Diagnostic
from dcil_dsl.diagnostics.suggest import replacements
from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.sensitivity.least_loss import Infeasible
from dcil_dsl.extras.sensitivity.profile import ProfileError, read_profile
from dcil_dsl.extras.sensitivity.report import suggest_rules
from dcil_dsl.extras.sensitivity.target import Sensitivity
from dcil_dsl.lang import recipe as r


@dataclass(frozen=True)
class Action:
    """One edit: the text of start..stop becomes `text`. diagnostic: what it mends."""

    title: str
    start: int
    stop: int
    text: str
    diagnostic: Diagnostic | None = None


def actions(analysis: Analysis, start: int, stop: int) -> Iterator[Action]:
    """What can be done in a range."""
    for one in analysis.diagnostics:
        span = one.span
        if span is None or span.source is not analysis.source:
            continue
        if span.start <= stop and start <= span.stop:
            for at, text in replacements(one):
                title = f"replace `{at.text}` by `{text}`"
                yield Action(title, at.start, at.stop, text, one)
    yield from _profiles(analysis, start, stop)


def _profiles(analysis: Analysis, start: int, stop: int) -> Iterator[Action]:
    """`prune ... to sensitivity(90%, profile="p.json")` as a rule for each layer."""
    folder = analysis.source.folder
    for rule in analysis.recipe.rules if analysis.recipe and folder else ():
        if not isinstance(rule, r.PruneRule) or not isinstance(rule.target, Sensitivity):
            continue
        span = rule.span
        if span.source is not analysis.source or not (span.start <= stop and start <= span.stop):
            continue
        assert folder is not None
        try:
            profile = read_profile(folder / rule.target.profile)
            text = suggest_rules(profile, rule.target.sparsity.fraction)
        except (ProfileError, Infeasible):
            continue  # resolving the recipe says why
        title = f"write the rules of {rule.target.profile} out"
        if "{" not in analysis.text[span.stop :].lstrip()[:1]:  # settings would be lost
            yield Action(title, span.start, span.stop, text.rstrip("\n"))
