"""Which rule owns each layer: the last one that matches.

In:   the recipe's `prune` and `keep` rules, the layers of the model.
Out:  for each prunable layer the rule that claims it, or none.
Not:  how much each loses (allocate.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics, Label
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.layers import Layer
from dcil_dsl.plan.select import Selection

MOST_SHOWN = 5  # rules that took the layers of another one


def claim_layers(
    rules: tuple[r.Prune | r.Keep, ...], selection: Selection, report: Diagnostics
) -> dict[str, int]:
    """The index of the claiming rule by the name of the weight.

    Layers tied to one weight are claimed together, by the last rule that matches any of them.

    A `prune` rule none of whose layers can be pruned is E302; a rule all of whose layers
    are claimed again below, in the same file, is W303. A layer whose weight is made of other
    parameters (weight_norm and the like), or is changed by its own forward, cannot be masked,
    which is E402 unless a rule below keeps it.
    """
    owner: dict[str, int] = {}
    claimed: list[tuple[Layer, ...]] = []
    hidden: dict[str, tuple[Layer, r.Prune]] = {}
    for index, rule in enumerate(rules):
        matched = selection.select(rule.selector)
        layers = tuple(layer for layer in matched if layer.prunable)
        for layer in matched:
            if isinstance(rule, r.Keep):
                hidden.pop(layer.path, None)
            elif layer.no_mask:
                hidden[layer.path] = (layer, rule)
        is_hiding = any(layer.no_mask for layer in matched)
        if isinstance(rule, r.Prune) and matched and not layers and not is_hiding:
            kinds = ", ".join(sorted({layer.type for layer in matched}))
            report.add(
                "E302",
                f"nothing here can be pruned: {count(len(matched), 'layer')} of type {kinds}",
                rule.selector.span,
                label="modules with a weight of two dimensions or more can be, norms excepted",
            )
        claimed.append(layers)
        owner.update({name: index for layer in layers for name in layer.weights})
    for layer, rule in hidden.values():
        report.add(
            "E402",
            f"`{layer.path}` ({layer.type}) {layer.no_mask}",
            rule.selector.span,
            help=f'`except "{layer.path}"` in this rule, or `keep "{layer.path}"` below it, leaves '
            "it as it is",
        )
    for index, (rule, layers) in enumerate(zip(rules, claimed, strict=True)):
        owners = {owner[name] for layer in layers for name in layer.weights}
        # What a recipe inherits by `extends` it may well mean to replace as a whole.
        is_replaced = all(rules[i].span.source is not rule.span.source for i in owners)
        if owners and index not in owners and not is_replaced:
            later = sorted(owners)
            claims = count(len(layers), "layer, claimed again", "layers, all of them claimed again")
            report.add(
                "W303",
                "this rule has no effect",
                rule.span,
                label=f"claims {claims} below",
                others=tuple(
                    Label(rules[i].span, "the last rule that matches a layer wins")
                    for i in later[:MOST_SHOWN]
                ),
                help="move the wider rule above the narrower one",
            )
    return owner
