"""The words of a `prune` rule: what goes together, how much, by which score, over what time.

In:   the arguments of a call, evaluated (values.py).
Out:  one class each; their tables stand in vocabulary.py.
Not:  what a word does: plan/ (targets, schedules), masking/ (scores).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Field

from dcil_dsl.extend import kinds
from dcil_dsl.extend.word import Average, Factor, LayersName, ScoredPath, Word
from dcil_dsl.lang.values import Percent, Range, Time

# -- granularities: what goes or stays together ---------------------------------------------


class Single(Word):
    """`weight`: each weight by itself."""

    bare: ClassVar[bool] = True


class Filter(Word):
    """`filter`: all weights of an output channel."""

    bare: ClassVar[bool] = True


class Channel(Word):
    """`channel`: all weights of an input channel."""

    bare: ClassVar[bool] = True


class Head(Word):
    """`head`: what belongs to an attention head in all of the rule's layers of that attention."""

    bare: ClassVar[bool] = True


class Block(Word):
    """`block(4, 1)`: so many outputs by so many inputs, at one position of the kernel."""

    positional: ClassVar[int] = 2
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]


Granularity = Union[Single, Filter, Channel, Head, Block]


class Within(Word):
    """`within(shortcuts, floor=30%)`: the least and the largest density of layers together."""

    positional: ClassVar[int] = 1
    layers: LayersName
    floor: Percent | None = None
    ceiling: Percent | None = None


# -- targets: how much goes, and how it is shared out among the layers --------------------


class Uniform(Word):
    """Every layer of the rule loses the same share: `90%` or `uniform(90%)`."""

    positional: ClassVar[int] = 1
    sparsity: Percent
    granularity: Granularity | None = None  # None: what the rule or `pruning` says


class Global(Word):
    """One threshold over all layers of the rule: `global(90%)`.

    `of`: what the percentage is a share of. None: of the weights, or of the units where those
    are larger than one weight.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent
    granularity: Granularity | None = None
    of: Literal["weights", "units", "flops"] | None = None


class NM(Word):
    """`2:4` or `nm(2, 4)`: of every m consecutive input channels n weights stay."""

    positional: ClassVar[int] = 2
    n: Annotated[int, Field(ge=1)]
    m: Annotated[int, Field(ge=2)]

    @property
    def sparsity(self) -> Percent:
        return Percent(1 - self.n / self.m)


class Erk(Word):
    """`erk(90%)`: the rule's layers lose 90% together, small ones less, large ones more.

    The density of a layer is eps * ((sum of its dimensions) / (product of them))^power, at most
    1; power 0 is uniform. Evci et al. 2020, arXiv:1911.11134, section 3.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent
    power: Annotated[float, Field(ge=0)] = 1.0


class Lamp(Word):
    """`lamp(90%)`: one threshold over w^2 / (sum of the squares in its layer that are no less).

    Lee et al. 2021, arXiv:2010.07611, section 2.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent


class Sensitivity(Word):
    """`sensitivity(90%, profile="profile.json")`: what was measured to be minded least goes.

    The layers of the rule lose so much together; `dcil sensitivity` writes the profile, whose
    path is relative to the recipe's.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent
    profile: Annotated[str, Field(min_length=1)]


Target = Union[Uniform, Global, Erk, Lamp, NM, Sensitivity]

# -- scores --------------------------------------------------------------------------------


class Magnitude(Word):
    """`magnitude`: |w|."""

    bare: ClassVar[bool] = True
    average: Average = None


class L2(Word):
    """`l2`: w^2."""

    bare: ClassVar[bool] = True
    average: Average = None


class Taylor(Word):
    """`taylor(sparse)`: |w * gradient|, summed. Molchanov et al. 2019, arXiv:1906.10771."""

    positional: ClassVar[int] = 1
    bare: ClassVar[bool] = True
    path: ScoredPath = None
    average: Average = None


class Movement(Word):
    """`movement(sparse)`: -w * gradient, summed. Sanh et al. 2020, arXiv:2005.07683."""

    positional: ClassVar[int] = 1
    bare: ClassVar[bool] = True
    path: ScoredPath = None
    average: Average = None


class Gradient(Word):
    """`gradient(sparse)`: |gradient|, summed."""

    positional: ClassVar[int] = 1
    bare: ClassVar[bool] = True
    path: ScoredPath = None
    average: Average = None


class Random(Word):
    """`random`: drawn once from the recipe's seed, or with `redraw` anew for every mask."""

    bare: ClassVar[bool] = True
    redraw: bool = False


Score = Union[
    Magnitude, L2, Taylor, Movement, Gradient, Random, kinds.Score, kinds.GradientScore
]

# -- what happens to weights beside being masked ------------------------------------------------

Part = Literal["kept", "reserve", "pruned"]


class Square(Word):
    """`square(pruned, 2e-4)`: weight / 2 * the sum of squares, whose gradient is weight * w.

    On the pruned weights: SR-STE, Zhou et al. 2021, arXiv:2102.04010, eq. 10.
    """

    positional: ClassVar[int] = 2
    part: Part
    weight: Factor
    stairs: Annotated[int, Field(ge=2)] | None = None


class Norm(Word):
    """`norm(kept, 1e-3)`: weight * the root of the sum of squares, layer by layer.

    `stairs`: the weight rises over the run in so many equal steps, from 0. On the kept weights:
    FedDIP, Long et al. 2023, arXiv:2309.06805.
    """

    positional: ClassVar[int] = 2
    part: Part
    weight: Factor
    stairs: Annotated[int, Field(ge=2)] | None = None


Penalty = Union[Square, Norm, kinds.Penalty]


class Power(Word):
    """`power(alpha=2)`: the stored numbers are theta, w = theta |theta|^(alpha - 1).

    Schwarz et al. 2021, "Powerpropagation", arXiv:2110.00296, section 2.
    """

    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(ge=1)]


class GrowByGradient(Word):
    """`gradient(30%)`: at each refresh drop this share, grow where the gradient is largest, that
    of the deployed path or, `gradient(30%, dense)`, of another.

    The share falls to 0 at `stop` by half a cosine. RigL: Evci et al. 2020, arXiv:1911.11134.
    """

    positional: ClassVar[int] = 2
    share: Percent
    path: ScoredPath = None
    stop: Time = Time(0.75, "run")


class GrowAtRandom(Word):
    """`random(30%)`: the same, growing anywhere. SET: Mocanu et al. 2018, arXiv:1707.04780."""

    positional: ClassVar[int] = 1
    share: Percent
    stop: Time = Time(0.75, "run")


Regrow = Union[GrowByGradient, GrowAtRandom]

# -- schedules: the share of the target that is asked for, over time ------------------------


class Cubic(Word):
    """s(t) = target - (target - initial) * (1 - u)^3, u = how far t is through `over`.

    Zhu & Gupta 2017, arXiv:1710.01878. `grid`: the target moves only at its multiples.
    """

    positional: ClassVar[int] = 1
    over: Range
    initial: Percent = Percent(0.0)
    grid: Time | None = None


class Linear(Word):
    """s(t) = initial + (target - initial) * u."""

    positional: ClassVar[int] = 1
    over: Range
    initial: Percent = Percent(0.0)
    grid: Time | None = None


class Once(Word):
    """0 before `at`, the target from then on."""

    at: Time


class Constant(Word):
    """The target from the first step on."""


Schedule = Union[Cubic, Linear, Once, Constant]
