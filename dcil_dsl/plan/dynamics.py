"""What a rule does to its weights beside masking them, in steps.

In:   a checked `prune` rule.
Out:  those fields of its Group.
Not:  budgets (allocate.py), scores (scores.py).
"""

from __future__ import annotations

from dcil_dsl.extend import kinds
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang import vocabulary as v
from dcil_dsl.plan import plan as p


def resolve_dynamics(
    rule: r.Prune, deploy: str, steps_per_epoch: int, num_steps: int
) -> dict[str, object]:
    """Fields of p.Group by name. `deploy`: the path whose gradient says where to grow."""

    def steps(time):
        return time.to_steps(steps_per_epoch, num_steps)

    if isinstance(rule.refresh, tuple):
        moments = tuple(sorted({steps(time) for time in rule.refresh}))
        refresh = max(num_steps, 1)
    else:
        moments, refresh = (), max(steps(rule.refresh), 1)
    regrow = None
    if rule.regrow is not None:
        path = getattr(rule.regrow, "path", None) or deploy
        regrow = p.Regrow(
            share=rule.regrow.share.fraction,
            until=steps(rule.regrow.stop),
            path=path if isinstance(rule.regrow, v.GrowByGradient) else None,
        )
    return {
        "refresh": refresh,
        "moments": moments,
        "forget": rule.forget,
        "reserve": rule.reserve.fraction if rule.reserve else 0.0,
        "penalties": tuple(_penalty(word) for word in rule.penalty),
        "power": rule.param and rule.param.alpha,
        "regrow": regrow,
    }


def _penalty(word: v.Penalty) -> p.Penalty:
    is_ours = not isinstance(word, kinds.Penalty)
    return p.Penalty(
        form=word.called if is_ours else "outside", part=word.part, weight=word.weight,
        stairs=word.stairs, outside=None if is_ours else word.outside,
    )  # fmt: skip
