"""The part of the Plan that is one `prune` rule: its weights, units, budget, score and time.

In:   allocate.py fills it.
Out:  Budgeted, the fields that say what a rule counts; Group, all of a rule; what they count, per
      member.
Not:  no time (schedule.py), no paths and no training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from dcil_dsl.words.granularity import Granularity, Pattern, Single
from dcil_dsl.words.losses import Penalty
from dcil_dsl.words.registry import Stored, token
from dcil_dsl.words.schedules import Regrow, Schedule
from dcil_dsl.words.scores import AnyScore, Gradient
from dcil_dsl.words.targets import Target
from dcil_dsl.words.views import Parametrization


class PlanRecord(BaseModel):
    """A part of the Plan: frozen, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]


class Cut(PlanRecord):
    """How a weight falls into units: viewed in `shape`, a unit is one index of the dimensions
    `units` and all of the others. A filter of a convolution: (O, I * kh * kw), (0,)."""

    shape: tuple[PositiveInt, ...]
    units: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _check(self) -> Cut:
        if max(self.units, default=-1) >= len(self.shape):
            raise ValueError("its units are not dimensions of its shape")
        return self

    @property
    def num_units(self) -> int:
        return math.prod(self.shape[i] for i in self.units)


class FilterFloor(PlanRecord):
    """The least weights of each filter of one weight; `cut` says which are its filters."""

    cut: Cut
    least: PositiveInt

    @property
    def total(self) -> int:
        """What the filters keep together at least."""
        return self.cut.num_units * self.least


class BufferedScore(NamedTuple):
    """A score that needs a buffer next to each weight, because it depends on earlier steps.

    path     the path whose gradient it sums; None: it averages the magnitudes of the weights
    average  the decay of the moving average; None: a sum over the steps
    """

    score: AnyScore
    path: str | None
    average: float | None

    @property
    def token(self) -> str:
        return token(self.score)


class Bound(PlanRecord):
    """Members, by their place in the group, that together keep `floor` to `ceiling` units at the
    target. `name` is what the recipe calls them."""

    name: str
    members: tuple[NonNegativeInt, ...]
    floor: NonNegativeInt
    ceiling: NonNegativeInt


class Stretch(NamedTuple):
    """`length` filters from `first` on, each `step` after the last."""

    first: NonNegativeInt
    length: PositiveInt
    step: int


class Tied(PlanRecord):
    """The filters of one weight in a Tie, unit after unit, as many of each."""

    parameter: str
    filters: tuple[Stretch, ...]

    @property
    def num_filters(self) -> int:
        return sum(run.length for run in self.filters)

    def listed(self) -> list[int]:
        """Every filter, in the order of the units."""
        return [run.first + i * run.step for run in self.filters for i in range(run.length)]


class Tie(PlanRecord):
    """Units of filters that stay or go together, each with as many filters of each weight.

    num_units  how many units there are
    parts      the filters of each weight
    bound      why none of them can go; "" where they can
    """

    num_units: PositiveInt
    parts: tuple[Tied, ...]
    bound: str = ""

    @model_validator(mode="after")
    def _check(self) -> Tie:
        if not self.parts or any(part.num_filters % self.num_units for part in self.parts):
            raise ValueError("its filters do not fall into its units")
        return self

    @property
    def filters_of_unit(self) -> dict[str, int]:
        """How many filters of each weight a unit has."""
        return {part.parameter: part.num_filters // self.num_units for part in self.parts}


_MAY_BE_EMPTY = ("cuts", "hardware", "costs", "ceilings", "targets", "filter_floors")


class Budgeted(PlanRecord):
    """Weights that a rule prunes together, a whole unit at a time, and how they are counted.

    Units lie in one weight each, but those of an attention head in several. Weights that share
    their units are a member of the group: `spans` says how many of `parameters`, from the first
    on, each member has. Of tied filters each of `ties` is a member, and a weight may have filters
    in several. ceilings and costs have one entry per member, all others one per weight.

    target       how much is pruned, and how the members share it
    of           what the budget counts: single weights, units, or multiply-accumulates
    granularity  the units that are pruned as a whole; ignored with a pattern
    cuts         how each weight falls into units; empty: each weight is one
    spans        empty: each weight is a member
    ties         which filters go together; empty: each filter is a unit
    costs        what a unit of each member costs the budget; empty: 1, the budget counts units
    ceilings     the most units each member keeps at the target; empty: all of them
    bounds       what some members keep together, of a global budget whose costs are all equal;
                 no member is in two of them
    filter_floors  what each filter of single weights keeps; empty: nothing is said
    """

    rule: str
    parameters: tuple[str, ...]
    num_weights: tuple[NonNegativeInt, ...]
    target: Stored[Target]
    of: Literal["weights", "units", "flops"] = "weights"
    granularity: Stored[Granularity] = Single()
    cuts: tuple[Cut, ...] = ()
    spans: tuple[int, ...] = ()
    ties: tuple[Tie, ...] = ()
    costs: tuple[PositiveInt, ...] = ()
    ceilings: tuple[NonNegativeInt, ...] = ()
    bounds: tuple[Bound, ...] = ()
    filter_floors: tuple[FilterFloor, ...] = ()

    @property
    def sparsity(self) -> float:
        """The share of the budget that is pruned at the end."""
        return self.target.sparsity.fraction

    @property
    def one_budget(self) -> bool:
        """Whether all members compete for one budget; else each has its own."""
        return self.target.one_budget

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern, if the target is one."""
        return self.target.pattern

    @property
    def unit(self) -> Granularity:
        """The units that are pruned as a whole."""
        return self.target.pattern or self.granularity

    def check_members(self, a_weight: tuple[str, ...], a_member: tuple[str, ...]) -> None:
        """ValueError if a field does not have an entry for each weight, or for each member."""
        size = len(self.parameters)
        num_members = len(self.ties) or len(self.spans) or size
        if not size or (self.spans and (sum(self.spans) != size or min(self.spans) < 1)):
            raise ValueError("its members are not all of its weights")
        for names, count in ((a_weight, size), (a_member, num_members)):
            for name in names:
                given = len(getattr(self, name))
                if given != count and (given or name not in _MAY_BE_EMPTY):
                    raise ValueError(f"{name} does not have one entry for each of {count}")
        if not isinstance(self.unit, Single) and not self.cuts:
            raise ValueError(f"no cuts say what a {self.unit.noun} is")
        of_filters = [floor.cut for floor in self.filter_floors]
        pairs = [*zip(self.cuts, self.num_weights), *zip(of_filters, self.num_weights)]
        for cut, size in pairs:
            if math.prod(cut.shape) != size:
                raise ValueError(f"a cut of shape {cut.shape} does not have {size} weights")
        if self.ties:
            self._check_ties()
        if any(place >= num_members for bound in self.bounds for place in bound.members):
            raise ValueError("a bound is of members that are missing")

    def _check_ties(self) -> None:
        """ValueError unless each filter of each weight is in exactly one unit."""
        listed: dict[str, list[int]] = {name: [] for name in self.parameters}
        sizes = dict(zip(self.parameters, (cut.num_units for cut in self.cuts), strict=False))
        parts = [part for tie in self.ties for part in tie.parts]
        if self.spans or any(part.parameter not in sizes for part in parts):
            raise ValueError("its ties are not of its weights")
        if sum(part.num_filters for part in parts) != sum(sizes.values()):
            raise ValueError("its ties do not have every filter once")
        for part in parts:
            listed[part.parameter] += part.listed()
        if any(sorted(own) != list(range(sizes[name])) for name, own in listed.items()):
            raise ValueError("its ties do not have every filter once")


class Stage(Budgeted):
    """A budget with its score and its time.

    targets   the pruned share of each member, where the target divides its budget; else empty
    floors    the least count of units each member keeps
    schedule  the pruned share over time
    """

    targets: tuple[Share, ...] = ()
    floors: tuple[NonNegativeInt, ...]
    score: Stored[AnyScore]
    schedule: Stored[Schedule]


class Group(Stage):
    """The weights of one `prune` rule, with its score, schedule and settings.

    before      the whole units that are pruned first; the budget is then of what they leave, and
                its units are single weights
    hardware    why sparse tensor cores do not run the pattern in each weight, "" where they do;
                empty: the target is not a pattern
    refresh     masks are recomputed at multiples of this many steps, and when the target is reached
    moments     the steps at which they are recomputed instead of those multiples; empty: those
    freeze      from this step on masks stand still; None: never
    forget      a weight that a mask prunes becomes zero there and then, its momentum with it
    reserve     the share of the budget that the highest scores among the pruned weights make up,
                which may learn by rules of their own
    penalties   what is added to the gradients of parts of the weights
    param       how the weights are stored; None: as they are
    regrow      masks change by dropping and growing; None: they are made from scores alone
    """

    before: Stage | None = None
    hardware: tuple[str, ...] = ()
    refresh: PositiveInt
    moments: tuple[int, ...] = ()
    freeze: int | None = None
    forget: bool = False
    reserve: Share = 0.0
    penalties: tuple[Stored[Penalty], ...] = ()
    param: Stored[Parametrization] | None = None
    regrow: Stored[Regrow] | None = None

    @model_validator(mode="after")
    def _check(self) -> Group:
        a_member = ("floors", "ceilings", "costs", "targets")
        self.check_members(("num_weights", "cuts", "hardware", "filter_floors"), a_member)
        if self.before is not None:
            self.before.check_members(("num_weights", "cuts", "filter_floors"), a_member)
            check_before(self, self.before)
        return self

    @property
    def buffered_score(self) -> BufferedScore | None:
        """The score that needs a buffer; None where masks follow from the weights alone."""
        if self.regrow is not None and self.regrow.gradient_path is not None:
            path = self.regrow.gradient_path
            return BufferedScore(Gradient(path=path), path, 0.0)  # the last step's
        if not self.score.has_state:
            return None
        return BufferedScore(self.score, self.score.gradient_path, self.score.decay)


def check_before(group: Budgeted, before: Budgeted) -> None:
    """ValueError unless `before` prunes whole units of the same weights, layer by layer."""
    sizes = [dict(zip(one.parameters, one.num_weights, strict=True)) for one in (group, before)]
    if sizes[0] != sizes[1] or before.one_budget or before.unit.single:
        raise ValueError("what is pruned before has not budgets of units of the same weights")
    if not isinstance(group.unit, Single) or group.target.divides or group.target.needs_layers:
        raise ValueError("what is left is not pruned weight by weight, by one share")


# -- counts ----------------------------------------------------------------------------------------


def members(group: Budgeted, of: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """`of`, a sequence along group.parameters (None: those themselves), cut into members.

    A member is one weight, the weights that share an attention's heads, or those whose filters a
    tie joins.
    """
    entries = tuple(group.parameters if of is None else of)
    if group.ties:
        place = {name: i for i, name in enumerate(group.parameters)}
        return [tuple(entries[place[part.parameter]] for part in tie.parts) for tie in group.ties]
    stops = list(accumulate(group.spans or [1] * len(entries)))
    return [entries[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def num_units(group: Budgeted) -> tuple[int, ...]:
    """How many units each member has; of an N:M pattern the units are single weights."""
    if group.unit.single:
        return group.num_weights
    if group.ties:
        return tuple(tie.num_units for tie in group.ties)
    return tuple(cuts[0].num_units for cuts in members(group, group.cuts))


def weights_of_unit(group: Budgeted) -> list[dict[str, int]]:
    """For each member how many weights of each parameter one of its units has."""
    sizes = dict(zip(group.parameters, group.num_weights, strict=True))
    if group.ties:
        filters = dict(zip(group.parameters, (c.num_units for c in group.cuts), strict=True))
        return [
            {name: n * (sizes[name] // filters[name]) for name, n in tie.filters_of_unit.items()}
            for tie in group.ties
        ]
    counts = zip(members(group), num_units(group), strict=True)
    return [{name: sizes[name] // max(1, total) for name in names} for names, total in counts]


def weights_left(group: Budgeted, keeps: Sequence[int]) -> dict[str, int]:
    """How many weights of each parameter are in the units that `keeps` lets each member keep."""
    left = dict.fromkeys(group.parameters, 0)
    for number, of_unit in zip(keeps, weights_of_unit(group), strict=True):
        for name, size in of_unit.items():
            left[name] += number * size
    return left


def member_name(group: Budgeted, index: int) -> str:
    """A member as messages name it: its first weight, and how many more there are."""
    names: tuple[str, ...] = members(group)[index]
    if not group.ties or len(names) == 1:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} tied to it"


def unit_costs(group: Budgeted) -> tuple[int, ...]:
    """What a unit of each member costs the budget."""
    return group.costs or (1,) * len(num_units(group))


def budget_size(group: Budgeted) -> int:
    """What the budget would be if nothing were pruned."""
    return sum(n * cost for n, cost in zip(num_units(group), unit_costs(group), strict=True))


def kept_in_budget(group: Budgeted, keeps: Sequence[int]) -> int:
    """What `keeps` (schedule.keeps_at) lets stay, in what the budget counts."""
    if group.one_budget:
        return keeps[0]
    return sum(n * cost for n, cost in zip(keeps, unit_costs(group), strict=True))


def counted(group: Budgeted, many: bool = True) -> str:
    """What the budget counts, in a word: "weights", "filters", "multiply-accumulates"."""
    noun = {"weights": "weight", "flops": "multiply-accumulate"}.get(group.of, group.unit.noun)
    return noun + "s" * many
