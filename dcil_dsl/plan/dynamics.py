"""What a rule does to its weights beside masking them, in steps.

In:   a checked `prune` rule.
Out:  those fields of its Group.
Not:  budgets (allocate.py), scores (scores.py).
"""

from __future__ import annotations

from typing import Any

from dcil_dsl.lang import recipe as r
from dcil_dsl.words.word import Run


def resolve_dynamics(rule: r.PruneRule, run: Run) -> dict[str, Any]:
    """Fields of p.Group by name."""
    if isinstance(rule.refresh, tuple):
        moments = tuple(sorted({run.steps(time).step for time in rule.refresh}))
        refresh = max(run.num_steps, 1)
    else:
        moments, refresh = (), run.steps(rule.refresh, least=1).step
    return {
        "refresh": refresh,
        "moments": moments,
        "forget": rule.forget,
        "reserve": rule.reserve.fraction if rule.reserve else 0.0,
        "penalties": tuple(word.in_steps(run) for word in rule.penalty),
        "param": rule.param and rule.param.in_steps(run),
        "regrow": rule.regrow and rule.regrow.in_steps(run),
    }
