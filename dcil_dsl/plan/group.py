"""The part of the Plan that is one `prune` rule: its weights, units, budget, score and time.

In:   allocate.py and its neighbours fill it.
Out:  Group, re-exported by plan.py with what it is made of.
Not:  no paths and no training.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from dcil_dsl.extend.outside import Outside


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]


class Schedule(Part):
    """Sparsity over time; schedule.py evaluates it.

    kind "cubic" | "linear": from `initial` at `start` to the target at `stop`; it moves only
    at multiples of `grid` steps (1: at every step). "once": 0 before `start`, then the target.
    "constant": the target throughout.
    """

    kind: Literal["cubic", "linear", "once", "constant"]
    start: NonNegativeInt = 0
    stop: NonNegativeInt = 0
    initial: Share = 0.0
    grid: PositiveInt = 1


class Single(Part):
    """Each weight by itself."""

    kind: Literal["weight"] = "weight"


class Pattern(Part):
    """Of every m consecutive input channels, n weights stay: 2:4."""

    kind: Literal["nm"] = "nm"
    n: PositiveInt
    m: PositiveInt


class Block(Part):
    """height output channels by width input channels, at one position of the kernel."""

    kind: Literal["block"] = "block"
    height: PositiveInt
    width: PositiveInt


class Whole(Part):
    """All weights of an output channel, of an input channel, of an attention head."""

    kind: Literal["filter", "channel", "head"]


Unit = Annotated[Union[Single, Pattern, Block, Whole], Field(discriminator="kind")]


class Cut(Part):
    """How a weight falls into units: viewed in `shape`, a unit is one index of the dimensions
    `units` and all of the others. A filter of a convolution: (O, I * kh * kw), (0,)."""

    shape: tuple[PositiveInt, ...]
    units: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _check(self) -> Cut:
        if max(self.units, default=-1) >= len(self.shape):
            raise ValueError("its units are no dimensions of its shape")
        return self

    @property
    def num_units(self) -> int:
        return math.prod(self.shape[i] for i in self.units)


class Score(Part):
    """How much a single weight matters; masking/score.py computes it.

    average  None: the last value ("magnitude" |w|, "l2" w^2), or the sum over the steps ("taylor"
             |w g|, "movement" -w g, "gradient" |g|); else the decay of a moving average over them
    path     whose gradient g is, dL/dv at the view v that this path sees; None: no gradient
    redraw   "random": another draw for every mask; else one draw for the whole run
    outside  "outside": a word that brings its formula (extend/kinds.py)
    """

    kind: Literal["magnitude", "l2", "taylor", "movement", "gradient", "random", "outside"]
    average: float | None = None
    path: str | None = None
    redraw: bool = False
    outside: Outside | None = None

    @model_validator(mode="after")
    def _check(self) -> Score:
        if (self.kind == "outside") != (self.outside is not None):
            raise ValueError("a score from outside and the word that brings it go together")
        return self

    @property
    def called(self) -> str:
        """The recipe's word."""
        return self.kind if self.outside is None else self.outside.word

    @property
    def formula(self) -> str:
        """The name under which masking/score.py knows it, or the token of its word."""
        return self.kind if self.outside is None else self.outside.token

    @property
    def has_state(self) -> bool:
        """Whether it depends on more than the weights: then a buffer is kept for each."""
        return self.average is not None or self.path is not None


class Penalty(Part):
    """A term whose gradient is added to that of the weights of one part, layer by layer.

    form    "square": weight / 2 * sum of w^2, gradient weight * w
            "norm":   weight * sqrt(sum of w^2), gradient weight * w / sqrt(sum of w^2)
            "outside": weight * what the word gives (extend/kinds.py)
    stairs  the weight rises over the run in so many equal steps, from 0; None: it is constant
    """

    form: Literal["square", "norm", "outside"]
    part: Literal["kept", "reserve", "pruned"]
    weight: float
    stairs: int | None = None
    outside: Outside | None = None


class Regrow(Part):
    """At each refresh a share of the kept weights is dropped and as many are grown.

    share  of the kept weights at step 0; it falls to 0 at `until` by half a cosine
    path   whose gradient says where to grow; None: chance says
    """

    share: Share
    until: NonNegativeInt
    path: str | None = None


def _score(value: object) -> object:
    """A bare kind stands for its defaults, as it does in a recipe."""
    return {"kind": value} if isinstance(value, str) else value


class Bound(Part):
    """Members, by their place in the group, that together keep `floor` to `ceiling` units at the
    target. `name` is what the recipe calls them."""

    name: str
    members: tuple[NonNegativeInt, ...]
    floor: NonNegativeInt
    ceiling: NonNegativeInt


SharedBy = Literal["target", "erk", "sensitivity", "lamp"]


def check_members(group: Group, a_weight: tuple[str, ...], a_member: tuple[str, ...]) -> None:
    """ValueError where a field has not an entry for each weight, or for each member.

    Fields that are empty say something by that (see Group) where they may be. A Promise of an
    export has the same fields.
    """
    size = len(group.parameters)
    num_members = len(group.spans) or size
    if not size or (group.spans and (sum(group.spans) != size or min(group.spans) < 1)):
        raise ValueError("its members are not all of its weights")
    for names, count in ((a_weight, size), (a_member, num_members)):
        for name in names:
            given = len(getattr(group, name))
            if given != count and (given or name not in _MAY_BE_EMPTY):
                raise ValueError(f"{name} has not one entry for each of {count}")
    if group.unit.kind != "weight" and not group.cuts:
        raise ValueError(f"no cuts say what a {group.unit.kind} is")
    for cut, size in zip(group.cuts, group.num_weights, strict=False):
        if math.prod(cut.shape) != size:
            raise ValueError(f"a cut of shape {cut.shape} does not have {size} weights")
    if any(place >= num_members for bound in group.bounds for place in bound.members):
        raise ValueError("a bound is of members that are not there")


_MAY_BE_EMPTY = ("cuts", "hardware", "costs", "ceilings", "targets")


class Group(Part):
    """The layers of one `prune` rule, pruned together, a whole unit at a time.

    Units lie in one weight each, but those of an attention head in several. What shares its
    units is a member of the group: `spans` says how many of `parameters`, from the first on,
    each member has. floors, ceilings and costs have one entry a member, all others one a weight.

    allocation  "global": one budget for all; "uniform": one budget each
    shared_by   how the budget was shared out: "target", each member as the target has it; "erk"
                and "sensitivity", as `targets` has it; "lamp", scores are compared within their
                member first
    target      the share of the budget that is pruned in the end
    targets     the share of each member, in a uniform group; empty: the target for all of them
    of          what the budget counts: single weights, units, or multiply-accumulates
    cuts        how each weight falls into units; empty: each weight is one
    spans       empty: each weight is a member by itself
    costs       what a unit of each member costs the budget; empty: 1, the budget counts units
    floors      the least count of units each member keeps
    ceilings    the most units each member keeps at the target; empty: all of them
    bounds      what some members keep together, of a global budget whose costs are all equal;
                no member is in two of them
    hardware    why sparse tensor cores do not run the pattern in each weight, "" where they do;
                empty: the units are no pattern
    refresh     masks are recomputed at multiples of so many steps, and when the target is reached
    moments     the steps at which they are recomputed instead of those multiples; empty: those
    freeze      from this step on masks stand still; None: never
    forget      a weight that a mask prunes becomes zero there and then, its momentum with it
    reserve     the share of the budget that the highest scores among the pruned weights make up,
                which may learn by rules of their own
    penalties   what is added to the gradients of parts of the weights
    power       weights are stored as theta, w = theta |theta|^(power - 1); None: as they are
    regrow      masks change by dropping and growing; None: they are made from scores alone
    """

    rule: str
    parameters: tuple[str, ...]
    num_weights: tuple[NonNegativeInt, ...]
    allocation: Literal["global", "uniform"]
    shared_by: SharedBy = "target"
    target: Share
    targets: tuple[Share, ...] = ()
    of: Literal["weights", "units", "flops"] = "weights"
    unit: Unit = Single()
    cuts: tuple[Cut, ...] = ()
    spans: tuple[int, ...] = ()
    costs: tuple[PositiveInt, ...] = ()
    floors: tuple[NonNegativeInt, ...]
    ceilings: tuple[NonNegativeInt, ...] = ()
    bounds: tuple[Bound, ...] = ()
    hardware: tuple[str, ...] = ()
    score: Annotated[Score, BeforeValidator(_score)]
    schedule: Schedule
    refresh: PositiveInt
    moments: tuple[int, ...] = ()
    freeze: int | None = None
    forget: bool = False
    reserve: Share = 0.0
    penalties: tuple[Penalty, ...] = ()
    power: float | None = None
    regrow: Regrow | None = None

    @model_validator(mode="after")
    def _check(self) -> Group:
        check_members(
            self, ("num_weights", "cuts", "hardware"), ("floors", "ceilings", "costs", "targets")
        )
        return self

    @property
    def kept_score(self) -> Score | None:
        """The score that needs a buffer; None where masks follow from the weights alone."""
        if self.regrow is not None and self.regrow.path is not None:
            return Score(kind="gradient", average=0.0, path=self.regrow.path)  # the last step's
        return self.score if self.score.has_state else None
