"""A rule's score as the Plan has it, and whether it can take part.

In:   the score's word, the deployed path; groups and phases of the Plan.
Out:  Score parts; E312 in a Diagnostics.
Not:  no numbers are scored (masking/score.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.extend import kinds
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang import vocabulary as v
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.schedule import last_refresh


def resolve_score(rule: r.Prune, deploy: str) -> p.Score:
    """The score of a rule; a gradient is the deployed path's where the rule names none.

    LAMP compares squares, whichever of the two sizes of a weight the rule names.
    """
    match rule.score:
        case v.Magnitude(average=average) | v.L2(average=average):
            squared = isinstance(rule.score, v.L2) or isinstance(rule.target, v.Lamp)
            return p.Score(kind="l2" if squared else "magnitude", average=average)
        case v.Taylor(average=average, path=path):
            return p.Score(kind="taylor", average=average, path=path or deploy)
        case v.Movement(average=average, path=path):
            return p.Score(kind="movement", average=average, path=path or deploy)
        case v.Gradient(average=average, path=path):
            return p.Score(kind="gradient", average=average, path=path or deploy)
        case kinds.GradientScore(average=average, path=path):
            word = rule.score.outside
            return p.Score(kind="outside", average=average, path=path or deploy, outside=word)
        case kinds.Score(average=average):
            return p.Score(kind="outside", average=average, outside=rule.score.outside)
        case v.Random(redraw=redraw):
            return p.Score(kind="random", redraw=redraw)
    raise AssertionError(rule.score)


def check_score(
    rule: r.Prune,
    group: p.Group,
    phases: tuple[p.Phase, ...],
    num_steps: int,
    report: Diagnostics,
) -> None:
    """E312 where every mask of the run is made before the first gradient that it could look at."""
    score = group.kept_score
    if score is None or score.path is None:
        return
    path = score.path
    runs = [phase.window.start for phase in phases if path in phase.paths]
    last = last_refresh(group, num_steps - 1)
    if not runs or last <= runs[0]:
        when = f"first runs at step {runs[0]:,}" if runs else "never runs"
        report.add(
            "E312",
            f"`{score.called}` takes no part: the last mask is made at step {last:,}, "
            f"path `{path}` {when}",
            rule.spans.get("score" if group.regrow is None else "regrow", rule.span),
            label="a gradient of a step moves the masks made after it",
        )
