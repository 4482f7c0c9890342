"""A target that divides its budget by a measured profile: the share of each layer.

In:   a `prune` rule with this target, and the Group that it makes.
Out:  the share of each layer that goes in the end; E318 where the profile does not fit.
Not:  how shares are chosen (least_loss.py), how a profile is read (profile.py).
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.least_loss import Infeasible, least_loss
from dcil_dsl.plan.profile import Profile, ProfileError, read_profile
from dcil_dsl.plan.schedule import whole_units
from dcil_dsl.plan.text import percent
from dcil_dsl.words.granularity import Single


def measured_shares(rule: r.Prune, group: p.Group, report: Diagnostics) -> tuple[float, ...]:
    """What goes of each layer so that the summed loss increase is least; () where E318 was told.

    The profile's path is relative to the file in which the rule's target is written.
    """
    assert rule.target.measured_in is not None
    span = rule.at("target")
    path = (span.source.folder or Path()) / rule.target.measured_in

    def refuse(fact: str, label: str = "", help: str | None = None) -> tuple[float, ...]:
        report.add("E318", fact, span, label=label, help=help)
        return ()

    if not isinstance(group.unit, Single):
        what = group.unit.noun
        return refuse(f"a profile tells of single weights, this rule prunes {what}s")
    try:
        profile = read_profile(path)
    except ProfileError as error:
        return refuse(
            f"the profile `{rule.target.measured_in}` cannot be read: {error}",
            label=f"looked for {path}",
            help="`dcil sensitivity RECIPE --model SPEC --train DATA --json FILE` writes one",
        )
    if misfits := _misfits(profile, group):
        more = f"; {len(misfits)} layers do not fit the profile" if len(misfits) > 1 else ""
        return refuse(misfits[0] + more, help="measure this model, or `keep` the layer")
    curves = [profile.curve(name) for name in group.parameters]
    num_keep = whole_units(sum(group.num_weights) * (1 - group.sparsity))
    try:
        keeps = least_loss(
            group.num_weights, curves, num_keep, group.floors, group.ceilings or None
        )
    except Infeasible as error:
        if num_keep < sum(group.floors) or error.least > sum(group.num_weights) - num_keep:
            return ()  # floors and ceilings, of which E304 tells
        most = percent(int(1000 * error.most / sum(group.num_weights)) / 1000)
        return refuse(
            f"within its floors the profile reaches {most}, not {percent(group.sparsity)}",
            label=f"measured up to {percent(profile.levels[-1])} of a layer",
            help="`dcil sensitivity --levels ...` measures higher sparsities",
        )
    return tuple(1 - keep / size for keep, size in zip(keeps, group.num_weights, strict=True))


def _misfits(profile: Profile, group: p.Group) -> list[str]:
    """What the profile does not know of the layers, a sentence each."""
    known = {layer.parameter: layer.num_weights for layer in profile.layers}
    return [
        f"the profile of {profile.model} says nothing of `{name}`"
        if name not in known
        else f"the profile's `{name}` has {count(known[name], 'weight')}, the model's {size:,}"
        for name, size in zip(group.parameters, group.num_weights, strict=True)
        if known.get(name) != size
    ]
