"""Which loss terms are weighed against each other, and when.

In:   a Plan whose `train` has a `balance`.
Out:  the places in Plan.losses of each path's terms that are measured at a step.
Not:  no gradient (training/balance.py).
"""

from __future__ import annotations

from dcil_dsl.plan.plan import Plan


def measured_at(plan: Plan, step: int) -> tuple[tuple[int, ...], ...]:
    """For each path with several terms open at `step`, their places; nothing between measurings.

    A term counts with the first of its paths, the student of a KL; one times 0 teaches nothing and
    takes no part.
    """
    balance = plan.train.balance
    if balance is None or step % balance.every.step:
        return ()
    terms: dict[str, list[int]] = {}
    for i, loss in enumerate(plan.losses):
        if loss.coefficient and loss.window.covers(step):
            terms.setdefault(loss.term.paths[0], []).append(i)
    return tuple(tuple(places) for places in terms.values() if len(places) > 1)


def num_measured(plan: Plan, step: int) -> int:
    """How many gradients are taken at `step` beside the step's own."""
    return sum(map(len, measured_at(plan, step)))
