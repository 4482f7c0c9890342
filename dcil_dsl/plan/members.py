"""The weights of a rule as members of its group: what goes together, and what a unit costs.

In:   a `prune` rule, its weights, the heads that are known.
Out:  Members in the order of use, and the costs of their units; E310 and E311 where a weight does
      not fall into the rule's units or its arithmetic is not known.
Not:  no budget (allocate.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.heads import HeadShare
from dcil_dsl.model.layers import Weight
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.cuts import Misfit, cut_weight
from dcil_dsl.words.granularity import Granularity, Head, Single
from dcil_dsl.words.targets import Global

MOST_NAMED = 4  # layers in a rule that is proposed


@dataclass(frozen=True)
class Member:
    """The weights that share their units, and how each falls into them; none for single weights.

    tie  the units, where they are filters of several weights or not all of a weight's
    """

    weights: tuple[Weight, ...]
    cuts: tuple[p.Cut, ...] = ()
    tie: p.Tie | None = None

    @property
    def num_units(self) -> int:
        if self.tie is not None:
            return self.tie.num_units
        return self.cuts[0].num_units if self.cuts else math.prod(self.weights[0].shape)

    @property
    def bound(self) -> bool:
        """Whether none of its units can go."""
        return self.tie is not None and bool(self.tie.bound)


def divide(
    rule: r.Prune,
    unit: Granularity,
    weights: tuple[Weight, ...],
    heads: Mapping[str, HeadShare],
    report: Diagnostics,
) -> list[Member] | None:
    """The weights by what shares its units, in the order of use; None where some have none."""
    if isinstance(unit, Single):
        return [Member((weight,)) for weight in weights]
    cuts, misfits = {}, []
    for weight in weights:
        try:
            cuts[weight.name] = cut_weight(weight, unit, heads.get(weight.name))
        except Misfit as misfit:
            misfits.append((weight.name, str(misfit)))
    if misfits:
        name, reason = misfits[0]
        more = f" and {len(misfits) - 1} more do" if len(misfits) > 1 else " does"
        report.add(
            "E310",
            f"`{name}`{more} not fall into {unit.together}",
            rule.granularity_span or rule.target_span,
            label=reason
            if heads or not isinstance(unit, Head)
            else "no attention layer is known in the model, so nothing in it has heads",
            help=_what_fits(misfits, len(weights)),
        )
        return None
    together: dict[str, list[Weight]] = {}
    for weight in weights:
        owner = heads[weight.name].owner if isinstance(unit, Head) else weight.name
        together.setdefault(owner, []).append(weight)
    return [
        Member(tuple(some), tuple(cuts[weight.name] for weight in some))
        for some in together.values()
    ]


def tie_members(members: list[Member], ties: tuple[p.Tie, ...]) -> list[Member]:
    """A member for each tie, of those that have one weight each."""
    by_name = {member.weights[0].name: member for member in members}
    tied = []
    for tie in ties:
        own = [by_name[part.parameter] for part in tie.parts]
        weights, cuts = tuple(m.weights[0] for m in own), tuple(m.cuts[0] for m in own)
        tied.append(Member(weights, cuts, tie))
    return tied


def _what_fits(misfits: list[tuple[str, str]], num_weights: int) -> str | None:
    """A rule to paste that keeps these layers; none where nothing else would be left to prune."""
    modules = list(dict.fromkeys(f'"{name.rpartition(".")[0]}"' for name, _ in misfits))
    if len(misfits) == num_weights or '""' in modules:
        return None
    if len(modules) > MOST_NAMED:
        return (
            f"`keep {modules[0]}` below this rule leaves one of them whole; "
            f"{len(modules) - 1} more need the like, or narrow the rule"
        )
    whole = "them whole" if misfits[1:] else "it whole"
    return f"`keep {', '.join(modules)}` below this rule leaves {whole}"


def unit_prices(
    rule: r.Prune, unit: Granularity, owned: list[Member], report: Diagnostics
) -> tuple[str, tuple[int, ...] | None]:
    """What the budget counts, and what a unit of each member costs it; () where each costs one.

    One budget each counts units: of a layer by itself every measure is the same share. Of tied
    filters a unit costs as many as it has, or what all of them cost.
    """
    is_single = unit.single
    of = getattr(rule.target, "of", None) or ("weights" if is_single else "units")
    if of == "units" and is_single:
        of = "weights"
    tied = any(member.tie is not None for member in owned)
    if tied and (of == "units" or not isinstance(rule.target, Global)):
        costs = tuple(sum(m.tie.filters_of_unit.values()) for m in owned if m.tie is not None)
        return of, costs if set(costs) != {1} else ()
    if not isinstance(rule.target, Global):
        return of, ()
    if of == "units" or is_single and of == "weights":
        return of, ()
    totals = [_total(member, of) for member in owned]
    for member, total in zip(owned, totals, strict=True):
        unknown = any(of == "flops" and w.macs is None for w in member.weights)
        if unknown or not total:
            report.add(
                "E311",
                f"the multiply-accumulates of `{member.weights[0].name}` are not known"
                if unknown
                else f"`{member.weights[0].name}` multiplies nothing",
                rule.target_span,
                label="a budget of FLOPs cannot count this layer",
                help="an example input tells them: `image_size` in `data`, or `example_inputs`"
                if unknown
                else "`keep` below this rule leaves it whole",
            )
            return of, None
    return of, tuple(n // member.num_units for n, member in zip(totals, owned, strict=True))


def _total(member: Member, of: str) -> int:
    """The weights, or the multiply-accumulates, of all units of a member."""
    totals = [math.prod(w.shape) if of == "weights" else w.macs or 0 for w in member.weights]
    if member.tie is None:
        return sum(totals)
    own = zip(totals, member.cuts, member.tie.parts, strict=True)
    return sum(n // cut.num_units * part.num_filters for n, cut, part in own)
