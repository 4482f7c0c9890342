"""Whether losses, outputs and weights are finite numbers, and what is said where they are not.

In:   for each loss of a plan the step at which it was first not finite; the weights.
Out:  NotFinite, which names the step and the term or the weight.
Not:  no going back (rewind.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks

BROKEN = "not_finite"  # beside accuracies: how many examples have no finite output
ADVICE = "lower the learning rate, or give the recipe a `clip` or a longer `warmup`"
AT_FIRST = (
    "nothing has been learned yet: look at the data, their class numbers, mean and deviation, and "
    "at the weights that the run starts from"
)
IN_EVALUATION = (
    "in evaluation, norms use their running statistics: look at those, and at the weights; or "
    f"{ADVICE}"
)


class NotFinite(InputError):
    """`what` was not a finite number at `step`."""

    def __init__(self, plan: Plan, step: int, what: str, help: str = ADVICE):
        self.step, self.what = step, what
        epoch = step // plan.steps_per_epoch + 1
        super().__init__(f"the {what} is not a finite number at step {step} (epoch {epoch})", help)


def stop_if_no_finite_loss(plan: Plan, first_bad: Sequence[Sequence[int]]) -> None:
    """NotFinite for the first loss that was NaN or infinite.

    first_bad  by rank and loss of the plan, the step at which that was so first, -1 where it was
               finite: however many steps ago it was noted, the first of them is named
    """
    bad = [
        (step, loss.name)
        for steps in first_bad
        for loss, step in zip(plan.losses, steps, strict=True)
        if step >= 0
    ]
    if bad:
        step, name = min(bad)
        raise NotFinite(plan, step, f"loss `{name}`", ADVICE if step else AT_FIRST)


def stop_if_no_finite_outputs(
    plan: Plan, accuracies: Mapping[str, Mapping[str, float]], step: int, num_examples: int
) -> None:
    """NotFinite for the first path with an output that was not. `step`: of the last update."""
    for path, accuracy in accuracies.items():
        if broken := accuracy.get(BROKEN):
            of = f"{broken:,} of {count(num_examples, 'held-out example')}"
            raise NotFinite(plan, step, f"output of path `{path}` for {of}", IN_EVALUATION)


def stop_if_no_finite_weights(
    plan: Plan,
    named: Iterable[tuple[str, Tensor]],
    step: int,
    ranks: Ranks = Ranks(),
    buffers: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """NotFinite for the first weight that is not, on all ranks alike. `step`: of the last update.

    A gradient can be infinite under a finite loss; nothing says so before the next step. Statistics
    can be NaN under finite losses to the end. Of buffers, those with an infinite number are let
    pass: constants have them.
    """
    named, buffers = list(named), [(n, t) for n, t in buffers if t.is_floating_point()]
    names = [name for name, _ in named + buffers]
    finite = torch.stack(
        [tensor.detach().isfinite().all() for _, tensor in named]
        + [~tensor.isnan().any() for _, tensor in buffers]
    )
    broken = (~ranks.gather(finite.to(torch.uint8)).bool().all(dim=0)).nonzero().flatten().tolist()
    if broken:
        raise NotFinite(plan, step, f"weight `{names[broken[0]]}`")
