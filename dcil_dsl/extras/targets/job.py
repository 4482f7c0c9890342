"""`dcil plan --for TARGET`: every layer of a plan on one target.

In:   a Plan and the name of a target.
Out:  rows of plain data, and their table as text.
Not:  nothing is built, run or measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.extras.targets.rules import TARGETS, Gain, LayerFigures
from dcil_dsl.plan.facts import count_facts, layer_facts
from dcil_dsl.plan.plan import Plan, PlanLayer
from dcil_dsl.plan.text import percent, shorten, table

NOTES = {
    "yes": "the time of the dense layer over that of the sparse one",
    "size": "the bytes of the dense weights over those of the sparse ones",
}


@dataclass(frozen=True)
class LayerGain:
    """One layer. exact: False where a shared budget decides its zeros, so that the share of all
    layers of its rule stands for them."""

    layer: LayerFigures
    gain: Gain
    macs_share: float | None
    exact: bool


def gains_on(plan: Plan, target: str) -> list[LayerGain]:
    """The layers that the plan prunes, in its order. InputError for an unknown target."""
    if target not in TARGETS:
        near = nearest(target, TARGETS)
        raise InputError(
            f"there is no target `{target}`",
            help=f"did you mean `{near}`?" if near else f"the targets are {', '.join(TARGETS)}",
        )
    rule = TARGETS[target][1]
    shared = {
        name: found.sparsity or 0.0  # of a threshold nothing is known
        for group, found in zip(plan.groups, count_facts(plan).groups, strict=True)
        for name in group.parameters
    }
    patterns = {
        name: obstacle
        for group in plan.groups
        for name, obstacle in zip(group.parameters, group.hardware, strict=False)
    }
    gains = []
    for layer, facts in zip(plan.layers, layer_facts(plan), strict=True):
        if layer.group is None:
            continue
        exact = facts.sparsity is not None
        sparsity = facts.sparsity if facts.sparsity is not None else shared[layer.parameter]
        figures = _figures(layer, sparsity, patterns.get(layer.parameter))
        gains.append(LayerGain(figures, rule(figures), facts.macs_share, exact))
    return gains


def _figures(layer: PlanLayer, sparsity: float, obstacle: str | None) -> LayerFigures:
    rows = None if layer.macs is None else layer.macs / max(1, layer.num_weights)
    return LayerFigures(
        parameter=layer.parameter,
        type=layer.type,
        num_outputs=layer.shape[layer.out_axis],
        num_inputs=layer.shape[layer.in_axis] if len(layer.shape) > 1 else 1,
        groups=layer.groups,
        sparsity=sparsity,
        rows=rows,
        tensor_cores=obstacle,
    )


def gains_json(plan: Plan, target: str) -> str:
    """Plain data: the target, and one entry a pruned layer."""
    layers = [
        {
            **asdict(row.layer),
            "macs_share": row.macs_share,
            "exact": row.exact,
            **asdict(row.gain),
        }
        for row in gains_on(plan, target)
    ]
    return json.dumps({"target": target, "help": TARGETS[target][0], "layers": layers}, indent=2)


def show_gains(plan: Plan, target: str) -> str:
    """The table, the share of the arithmetic that gains, and what an estimate is."""
    rows = gains_on(plan, target)
    lines = [f"{target}: {TARGETS[target][0]}", ""]
    if not rows:
        return f"{lines[0]}\n\nthe recipe prunes no layer\n"
    cells = [
        (
            shorten(row.layer.parameter, 30),
            row.layer.type,
            ("" if row.exact else "about ") + percent(round(row.layer.sparsity, 3)),
            "-" if row.macs_share is None else percent(round(row.macs_share, 3)),
            row.gain.pays,
            "-" if row.gain.estimate is None else f"{row.gain.estimate:.1f}",
            row.gain.rule,
        )
        for row in rows
    ]
    header = ("parameter", "type", "zeros", "MACs", "pays", "est.", "rule")
    lines += table(header, cells, "llrrlrl")
    faster = [row for row in rows if row.gain.pays == "yes"]
    share = sum(row.macs_share or 0 for row in faster)
    lines += [
        "",
        f"{len(faster)} of {len(rows)} layers gain time: {percent(round(share, 3))} of MACs",
    ]
    used = {row.gain.pays for row in rows if row.gain.estimate not in (None, 1.0)}
    lines += [f"est. of {pays}: {NOTES[pays]}" for pays in NOTES if pays in used]
    return "\n".join(lines) + "\n"
