"""What scores and regrowth need: a path that exists and learns; squares if a target compares them.

In:   the checked rules and the checked `mix`.
Out:  E216, E233, E234 in a Diagnostics.
Not:  when the path runs; only a run knows (plan/scores.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.check_mix import Mixed, named_by
from dcil_dsl.lang.expected import listed
from dcil_dsl.words.regrow import GrowByGradient
from dcil_dsl.words.scores import GradientScore
from dcil_dsl.words.units import written


def check_scores(rules: list[r.Prune | r.Keep], mixed: Mixed | None, found: Diagnostics) -> None:
    """Note, once for each place, every score that could not do what it is asked to."""
    told = set()
    for rule in rules:
        if not isinstance(rule, r.Prune):
            continue
        span = rule.spans.get("score", rule.span)
        word = rule.score.called
        if rule.target.rescales and not rule.score.by_size:
            found.add(
                "E234",
                f"`{rule.target.called}` compares squared weights, and the score is `{word}`",
                rule.target_span,
                others=(Label(span, "the score"),),
                help="`score = magnitude`, or `global` with this score",
            )
        if isinstance(rule.regrow, GrowByGradient):
            asked, span = rule.regrow, rule.spans.get("regrow", rule.span)
        elif isinstance(rule.score, GradientScore):
            asked = rule.score
        else:
            continue
        if mixed is not None and span not in told:
            told.add(span)
            _check_path(asked, span, mixed, found)


def _check_path(
    asked: GradientScore | GrowByGradient,
    span: Span,
    mixed: Mixed,
    found: Diagnostics,
) -> None:
    declared = [path.name for path in mixed.paths]
    path = asked.path or mixed.deploy
    if path not in declared:
        if asked.path and declared and not mixed.broken:
            found.add(
                "E216",
                f"no path is named `{path}`",
                span,
                help=did_you_mean(path, declared)
                or f"`mix` declares {listed(f'`{name}`' for name in declared)}",
            )
        return
    used = named_by(mixed.losses)
    learning = [name for name in declared if name in used]
    if learning and path not in used:
        grows = isinstance(asked, GrowByGradient)
        word = "gradient" if grows else asked.called
        other = (
            f"{word}({written(asked.share)}, {learning[0]})"
            if grows
            else (f"{word}({learning[0]})")
        )
        found.add(
            "E233",
            f"`{word}` needs the gradient of path `{path}`, which has no loss",
            span,
            help=f"`{other}`, or a loss of `{path}` in `mix`",
        )
