"""Times that a run never comes to: what is said for them does nothing.

In:   a checked Recipe, and how long its run is.
Out:  W306 in a Diagnostics, one for each statement.
Not:  a ramp that is cut off is an error (allocate.py), and so is a late phase (train.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.source import Span
from dcil_dsl.lang import recipe as r
from dcil_dsl.words.rates import Multistep
from dcil_dsl.words.units import Time


def warn_of_unreached(
    recipe: r.Recipe, steps_per_epoch: int, num_steps: int, report: Diagnostics
) -> None:
    """Losses and updates that never open, rates that never come, masks that never freeze."""

    def warn(what: str, time: Time | None, span: Span | None, label: str = "") -> bool:
        step = -1 if time is None else time.to_steps(steps_per_epoch, num_steps)
        if step >= num_steps:
            fact = f"{what} {count(step, 'step')}, the run has {num_steps:,}"
            report.add("W306", fact, span, label=label)
        return step >= num_steps

    for loss in recipe.losses:
        warn("this loss opens after", loss.start, loss.span)
    for update in recipe.updates:
        warn("this update begins after", update.start, update.span)
    rate = recipe.train.lr
    warn("the warm-up takes", rate.warmup, recipe.rate_span, "the rate is still rising at the end")
    for moment in rate.at if isinstance(rate, Multistep) else ():
        if warn("the rate changes after", moment, recipe.rate_span):
            break  # the later ones neither
    for rule in recipe.rules:
        if isinstance(rule, r.Prune):
            warn("masks freeze after", rule.freeze, rule.freeze_span or rule.span)
