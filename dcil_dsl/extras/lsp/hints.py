"""Inlay hints and signature help: what a rule takes, when a time is, what a call expects.

In:   an Analysis, the lines that are shown, or an offset inside a call.
Out:  values of the protocol.
Not:  no hint where the text already says it.
"""

from __future__ import annotations

from collections.abc import Iterator

from lsprotocol.types import (
    InlayHint,
    MarkupContent,
    MarkupKind,
    ParameterInformation,
    SignatureHelp,
    SignatureInformation,
)

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.lsp.context import context_at
from dcil_dsl.extras.lsp.hover import time_words
from dcil_dsl.extras.lsp.tree import walk
from dcil_dsl.lang import ast
from dcil_dsl.words.units import Time


def inlay_hints(analysis: Analysis, start: int, stop: int) -> list[InlayHint]:
    """The hints of a part of the text."""
    if analysis.file is None:
        return []
    found = [*_rules(analysis), *_times(analysis)]
    return [
        InlayHint(analysis.lines.position(at), label, padding_left=True)
        for at, label in sorted(found)
        if start <= at <= stop
    ]


def _rules(analysis: Analysis) -> Iterator[tuple[int, str]]:
    """How many layers a rule takes, behind its selector."""
    if analysis.matched is None:
        return
    for number, rule in enumerate(analysis.rules):
        span = rule.selector.span
        if span.source is analysis.source:
            taken = analysis.matched.taken(number)
            yield span.stop, count(len(taken), "layer") if taken else "no layers"


def _times(analysis: Analysis) -> Iterator[tuple[int, str]]:
    """The step of a share of the run, or its epoch where the length of an epoch is unknown."""
    assert analysis.file is not None
    for node in walk(analysis.file):
        if isinstance(node, ast.Literal) and isinstance(node.value, Time):
            if node.value.unit == "run":
                for words in time_words(analysis, node.value):
                    yield node.span.stop, words.partition(" of ")[0].partition(",  ")[0]


def signature(analysis: Analysis, offset: int) -> SignatureHelp | None:
    """The word whose parentheses are open here, and the setting that is being written."""
    context = context_at(analysis.lexemes, offset)
    frame = context.frame
    if frame is None or frame.kind != "(" or frame.told is None:
        return None
    told = frame.told
    labels = [
        one.name if one.default is None else f"{one.name}={one.default}" for one in told.settings
    ]
    parameters = [
        ParameterInformation(
            label, documentation=one.facts + (f". {one.meaning}" * bool(one.meaning))
        )
        for label, one in zip(labels, told.settings, strict=True)
    ]
    names = [one.name for one in told.settings]
    active = names.index(frame.setting) if frame.setting in names else frame.index
    information = SignatureInformation(
        f"{told.name}({', '.join(labels)})",
        documentation=MarkupContent(MarkupKind.Markdown, "\n\n".join(told.text)),
        parameters=parameters,
        active_parameter=min(active, max(len(names) - 1, 0)),
    )
    return SignatureHelp([information], active_signature=0)
