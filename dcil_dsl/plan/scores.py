"""Whether a rule's score can take part.

In:   groups and phases of the Plan.
Out:  E312 in a Diagnostics.
Not:  no numbers are scored (masking/score.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.schedule import last_refresh


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
            f"`{score.score.called}` takes no part: the last mask is made at step {last:,}, "
            f"path `{path}` {when}",
            rule.at("score" if group.regrow is None else "regrow"),
            label="a gradient of a step moves the masks made after it",
        )
