"""Back to the last good checkpoint after a loss was not finite, with a lower rate: --on-nan rewind.

In:   a Session whose losses or weights are not finite, and the run's checkpoints.
Out:  the Session as it was at the end of an epoch, with one more Rewind in its Position.
Not:  no change of the plan: the rate is the plan's times Position.rate_factor.

It goes back to the end of a whole epoch, never to a place in the middle of one, where a run is
only saved because it was interrupted: so an interrupted run goes back to where any other would.
A run that goes back has saved its beginning, so there always is a place to go back to.
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.training.checkpoint import is_end_of_epoch, load_checkpoint
from dcil_dsl.training.finite import NotFinite
from dcil_dsl.training.run import newest_of, previous_of
from dcil_dsl.training.session import Session, after_loading

MOST_REWINDS = 3


def rewind(now: Session, error: NotFinite) -> None:
    """Put `now` back. Raises the error where it was not asked for, or has been done too often."""
    if now.options.on_nan != "rewind":
        raise with_advice(error, now)
    at = now.state.position
    if len(at.rewinds) == MOST_REWINDS:
        raise NotFinite(
            now.plan,
            error.step,
            error.what,
            help=f"went back {MOST_REWINDS} times, to {at.rate_factor:g} of the recipe's rate; "
            f"{error.help}",
        )
    load_checkpoint(_good_one(now), now.state)
    after_loading(now)
    back = now.state.position
    # What was spent stays spent.
    back.seconds, back.trained, back.waited = at.seconds, at.trained, at.waited
    back.rewinds = [*at.rewinds, {"step": error.step, "what": error.what, "to": back.step}]
    now.step.plain.first_bad.fill_(-1)
    now.prints.clear()
    now.display.rewound(
        f"{error.message}: back to step {back.step:,}, on with {back.rate_factor:g} of the "
        "recipe's rate"
    )


def with_advice(error: NotFinite, now: Session) -> NotFinite:
    """The error with what can be done about it."""
    more = (
        ""
        if now.saved is None
        else (
            f"\nthe checkpoint of step {now.saved:,} stays; --resume --on-nan rewind goes on from "
            "a checkpoint with half the rate"
        )
    )
    return NotFinite(now.plan, error.step, error.what, help=f"{error.help}{more}")


def _good_one(now: Session) -> Path:
    """The newest checkpoint at the end of an epoch; where there is none, the newest."""
    last = now.run.checkpoint
    if newest_of(last) == last and not is_end_of_epoch(last, now.plan):
        previous = previous_of(last)
        if is_end_of_epoch(previous, now.plan):
            return previous
    return last
