"""Whether losses and weights are finite numbers, and what is said where they are not.

In:   for each loss of a plan the step at which it was first not finite; the weights.
Out:  NotFinite, which names the step and the term or the weight.
Not:  no going back (rewind.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks

ADVICE = "lower the learning rate, or give the recipe a `clip` or a longer `warmup`"


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
        raise NotFinite(plan, step, f"loss `{name}`")


def stop_if_no_finite_weights(
    plan: Plan, named: Iterable[tuple[str, Tensor]], step: int, ranks: Ranks = Ranks()
) -> None:
    """NotFinite for the first weight that is not, on all ranks alike. `step`: of the last update.

    A gradient can be infinite under a finite loss; nothing says so before the next step.
    """
    names, tensors = zip(*named, strict=True)
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors])
    broken = (~ranks.gather(finite.to(torch.uint8)).bool().all(dim=0)).nonzero().flatten().tolist()
    if broken:
        raise NotFinite(plan, step, f"weight `{names[broken[0]]}`")
