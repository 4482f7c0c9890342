"""Units: how weights fall into them, which weights share them, what each costs the budget.

In:   a `prune` rule, its weights and the known attention heads.
Out:  Cuts of the Plan, Members in the order of use, the cost of a unit; E310 and E311 for a weight
      that does not fall into the rule's units or has unknown arithmetic.
Not:  no budget (allocate.py), no scores and no tensors (masking/units.py).

A weight is seen as (groups, first, second, kernel): dimension 0 of a convolution counts the
outputs (of a transposed one the inputs) of all groups, dimension 1 the others of one group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.layers import HeadShare, Weight
from dcil_dsl.plan import plan as p
from dcil_dsl.words.granularity import Block, Channel, Filter, Granularity, Head, Pattern, Single
from dcil_dsl.words.targets import Global
from dcil_dsl.words.units import Percent

# -- cuts ------------------------------------------------------------------------------------------


# The sides of the two-dimensional weights that torch.sparse.SparseSemiStructuredTensorCUSPARSELT
# takes in half precision are multiples of this (torch/sparse/semi_structured.py).
TENSOR_CORE_SIDE = 16


class Misfit(Exception):
    """A weight that does not fall into such units; the text is the reason."""


def cut_weight(weight: Weight, unit: Granularity, share: HeadShare | None = None) -> p.Cut:
    """How the weight falls into units. Raises Misfit."""
    match unit:
        case Pattern(m=m):
            return _tiled(weight, 1, m)
        case Block(height=height, width=width):
            return _tiled(weight, height, width)
        case Filter():
            return _cut(_sizes(weight), {0, 1 + weight.out_axis})
        case Channel():
            return _cut(_sizes(weight), {0, 1 + weight.in_axis})
        case Head():
            return _heads(weight, share)
    raise AssertionError(unit)


def filter_floor(asked: int | Percent, weight: Weight) -> p.FilterFloor:
    """The weights that each filter keeps: at most all that it has, of a share rounded up."""
    cut = cut_weight(weight, Filter())
    size = math.prod(cut.shape) // cut.num_units
    least = asked if isinstance(asked, int) else math.ceil(size * asked.fraction - 1e-9)
    return p.FilterFloor(cut=cut, least=min(max(least, 1), size))


def tensor_core_obstacle(weight: Weight, unit: Pattern) -> str:
    """Why sparse tensor cores do not run the pattern in this weight, "" where they do.

    What torch runs, to_sparse_semi_structured of a linear layer, and a convolution with a kernel
    of one, which is the same product. Larger kernels hold the pattern along the input channels,
    as TensorRT wants it, and torch has no kernel for them.
    """
    outputs, inputs = (weight.shape[axis] for axis in (weight.out_axis, weight.in_axis))
    kernel = weight.shape[2:]
    if (unit.n, unit.m) != (2, 4):
        return f"the hardware's pattern is 2:4, not {unit.n}:{unit.m}"
    if weight.groups > 1:
        return f"{weight.groups} groups are separate small products"
    if math.prod(kernel) > 1:
        return f"a {' x '.join(map(str, kernel))} kernel is not a matrix product in torch"
    if outputs % TENSOR_CORE_SIDE or inputs % TENSOR_CORE_SIDE:
        return f"{outputs} x {inputs}: both sides must be multiples of {TENSOR_CORE_SIDE}"
    return ""


def _sizes(weight: Weight) -> tuple[int, int, int, int]:
    first, second, *kernel = weight.shape
    return weight.groups, first // weight.groups, second, math.prod(kernel)


def _tiled(weight: Weight, height: int, width: int) -> p.Cut:
    """Tiles of outputs by inputs at each position of the kernel."""
    tiles = {1 + weight.out_axis: height, 1 + weight.in_axis: width}
    sizes: list[int] = []
    units: set[int] = set()
    for place, size in enumerate(_sizes(weight)):
        tile = tiles.get(place, 1)
        if size % tile:
            what = "output" if place == 1 + weight.out_axis else "input"
            per = " a group" if weight.groups > 1 else ""
            raise Misfit(f"{count(size, what)}{per}, not a multiple of {tile}")
        units.add(len(sizes))
        sizes += [size // tile, tile] if place in tiles else [size]
    return _cut(tuple(sizes), units)


def _heads(weight: Weight, share: HeadShare | None) -> p.Cut:
    if share is None:
        raise Misfit("it does not belong to an attention with known heads")
    axis = weight.out_axis if share.is_output else weight.in_axis
    before, after = weight.shape[:axis], weight.shape[axis + 1 :]
    width = weight.shape[axis] // (share.parts * share.num_heads)
    sizes = (math.prod(before), share.parts, share.num_heads, width, math.prod(after))
    return _cut(sizes, {2})


def _cut(sizes: tuple[int, ...], units: set[int]) -> p.Cut:
    """Dimensions of one are left out, neighbours of one kind taken together."""
    merged: list[list[int]] = []
    for place, size in enumerate(sizes):
        if size == 1:
            continue
        if merged and merged[-1][1] == (place in units):
            merged[-1][0] *= size
        else:
            merged.append([size, place in units])
    return p.Cut(
        shape=tuple(size for size, _ in merged),
        units=tuple(place for place, (_, is_unit) in enumerate(merged) if is_unit),
    )


# -- members ---------------------------------------------------------------------------------------


Counted = Literal["weights", "units", "flops"]
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
    rule: r.PruneRule,
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
            rule.at("granularity", "target"),
            label=reason
            if heads or not isinstance(unit, Head)
            else "the model has no known attention layer, so nothing in it has heads",
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
            f"`keep {modules[0]}` below this rule excludes one of them; "
            f"{len(modules) - 1} more need the same, or narrow the rule"
        )
    them = "them" if misfits[1:] else "it"
    return f"`keep {', '.join(modules)}` below this rule excludes {them}"


def unit_prices(
    rule: r.PruneRule, unit: Granularity, owned: list[Member], report: Diagnostics
) -> tuple[Counted, tuple[int, ...] | None]:
    """What the budget counts, and what a unit of each member costs it; () where each costs one.

    A budget of one layer counts units: every measure gives the same share. A unit of tied filters
    costs as many as it has, or what all of them cost.
    """
    is_single = unit.single
    of: Counted = getattr(rule.target, "of", None) or ("weights" if is_single else "units")
    if of == "units" and is_single:
        of = "weights"
    ties = [member.tie for member in owned if member.tie is not None]
    if ties and (of == "units" or not isinstance(rule.target, Global)):
        costs = tuple(sum(tie.filters_of_unit.values()) for tie in ties)
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
                rule.at("target"),
                label="a budget of FLOPs cannot count this layer",
                help="an example input measures them: `image_size` in `data`, or `example_inputs`"
                if unknown
                else "`keep` below this rule excludes it",
            )
            return of, None
    return of, tuple(n // member.num_units for n, member in zip(totals, owned, strict=True))


def _total(member: Member, of: Counted) -> int:
    """The weights, or the multiply-accumulates, of all units of a member."""
    totals = [math.prod(w.shape) if of == "weights" else w.macs or 0 for w in member.weights]
    if member.tie is None:
        return sum(totals)
    own = zip(totals, member.cuts, member.tie.parts, strict=True)
    return sum(n // cut.num_units * part.num_filters for n, cut, part in own)
