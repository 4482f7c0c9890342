"""A path computes what is kept alone: `path sparse = masked { compute = kept }`.

In:   a training graph whose paths have their views, the plan.
Out:  the same graph; where the units of a pruned weight are whole filters or input channels, the
      paths that ask for it call apply_kept, where they are a 2:4 pattern apply_pattern.
Not:  no other numbers. The graphs of evaluation compute everything.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from dcil_dsl.compiler.passes import Pass
from dcil_dsl.compiler.verify import verify_paths, verify_routes
from dcil_dsl.extras.sparse_compute.kept import apply_kept
from dcil_dsl.extras.sparse_compute.pattern import apply_pattern
from dcil_dsl.masking.apply import apply_layer
from dcil_dsl.masking.split import split_weight
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.skip_pruned import in_pattern, left_out


def skip_pruned(graph: fx.Graph, plan: Plan, training: bool) -> fx.Graph:
    """Hand such layers their masks, in place.

    apply_layer(conv, {weight: w_sparse}, x)  ==>  apply_kept(conv, {...}, w_mask, 0, x)
    apply_layer(fc, {weight: w_sparse}, x)    ==>  apply_pattern(fc, {...}, w_mask, x)
    """
    paths = {path.name for path in plan.paths if path.compute == "kept"}
    if not paths or not training:
        return graph
    axes = left_out(plan.groups, plan.layers)
    pattern = set(in_pattern(plan.groups, plan.layers))
    for node in graph.nodes:
        if node.target is not apply_layer or node.meta.get("path") not in paths or node.kwargs:
            continue
        given: tuple[Any, ...] = node.args
        owner, parameters, *inputs = given
        mask = _mask_of(parameters.get("weight"))
        if mask is None or len(inputs) != 1:
            continue
        name = str(mask.target).removesuffix("_mask")
        if name in axes:
            node.target, node.args = apply_kept, (owner, parameters, mask, axes[name], *inputs)
            node.meta["mask"] = mask
        elif name in pattern:
            node.target, node.args = apply_pattern, (owner, parameters, mask, *inputs)
            node.meta["mask"] = mask
    return graph


def _mask_of(view: object) -> fx.Node | None:
    """The mask of a pruned weight, where this is a path's view of it."""
    if not isinstance(view, fx.Node) or view.target is not operator.getitem:
        return None
    split: Any = view.args[0]
    mask: fx.Node | None = split.args[1] if split.target is split_weight else None
    return mask


PASS = Pass(
    "skip_pruned",
    lambda g, c: skip_pruned(g, c.plan, c.training),
    (lambda g, c: verify_paths(g, c.phase), lambda g, c: verify_routes(g, c.plan)),
    after="route_gradients",
)
