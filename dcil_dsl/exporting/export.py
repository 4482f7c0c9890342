"""`dcil.export`: the deployable model of a Dual, once its sparsity is proved.

In:   a Dual and the path to keep.
Out:  an ordinary nn.Module of the class that was compiled, zeros in place.
Not:  nothing is saved; the Dual is not changed.
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.training.sparsity import SparsityError, check_sparsity, masks_step


def export(dual: Dual, path: str | None = None, *, unfinished: bool = False) -> nn.Module:
    """The network of `path` as the original class; None is the deployed path.

    unfinished  also export a model below the sparsity of the plan's last step, as in an early epoch

    Raises SparsityError where the path prunes and its masks are not those of the end of the plan;
    ValueError for a path that the plan does not have.
    """
    plan = dual.plan
    chosen = next((entry for entry in plan.paths if entry.name == (path or plan.deploy)), None)
    if chosen is not None and chosen.view.prunes and not unfinished:
        try:
            check_sparsity(dual, masks_step(plan.num_steps))
        except SparsityError as error:
            raise SparsityError(
                f"this network has not reached the sparsity of the recipe: {error}\n"
                f"train it to step {plan.num_steps:,}, or call export(dual, unfinished=True)"
            ) from None
    return collapse(dual, path)
