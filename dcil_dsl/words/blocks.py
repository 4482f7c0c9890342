"""The settings of the blocks of a recipe, and the words that are not calls.

In:   the kinds of words.
Out:  one class for each block: its settings with their types and defaults.
Not:  nothing that concerns two settings at once (lang/check.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dcil_dsl.words.augment import Augment
from dcil_dsl.words.granularity import Granularity
from dcil_dsl.words.losses import Penalty
from dcil_dsl.words.optimizers import Optimizer
from dcil_dsl.words.rates import ConstantRate, Rate, Stop
from dcil_dsl.words.schedules import Constant, Regrow, Schedule
from dcil_dsl.words.scores import AnyScore, Magnitude
from dcil_dsl.words.step import Balance, Integrator, Mirror, WeightAverage
from dcil_dsl.words.targets import Target, Within
from dcil_dsl.words.units import Percent, Time
from dcil_dsl.words.views import Parametrization
from dcil_dsl.words.weight_groups import WeightGroup
from dcil_dsl.words.word import Factor, Word


class AboutBlock(Word):
    """The settings of `recipe name { ... }`. uses: packages whose words the recipe knows."""

    title: str | None = None
    version: str | None = None
    reference: str | None = None
    uses: tuple[str, ...] = ()


class ModelBlock(Word):
    """The settings of `model name { ... }`; the others go to whatever builds the model."""

    classes: Annotated[int, Field(ge=1)] | None = None


class DataBlock(Word):
    """The settings of `data name { ... }`. image_size in pixels, None: as the dataset has them.
    length of texts in tokens, None: as the tokenizer says.

    torch 2.14 fails where it makes one pixel of an image of bytes.
    """

    batch_size: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=2)] | None = None
    length: Annotated[int, Field(ge=2)] | None = None
    channels: Annotated[int, Field(ge=1)] = 3
    augment: tuple[Augment, ...] = ()


class PruneBlock(Word):
    """The settings of `pruning { ... }` and of one rule.

    Without a schedule the target holds from the first step; masks are recomputed every 16
    steps, as in the authors' code. `floor` and `ceiling`: the least and the largest density of
    a layer, None: one unit, all of it; `bounds`: of some of its layers together. `reserve`:
    this share of the budget, the best pruned weights, may have an `update` of its own.
    `forget`: pruned weights become zero at once. `filter_floor`: each filter keeps as many weights,
    or this share of its own. `before`: whole units of each layer that are pruned first; the target
    then is of what they leave. `before_schedule`: when, None: as the rule.
    """

    score: AnyScore = Magnitude()
    schedule: Schedule = Constant()
    refresh: Time | tuple[Time, ...] = Time(16, "steps")
    freeze: Time | None = None
    floor: Percent | None = None
    filter_floor: Annotated[int, Field(ge=1)] | Percent | None = None
    ceiling: Percent | None = None
    bounds: tuple[Within, ...] = ()
    granularity: Granularity | None = None
    before: Target | None = None
    before_schedule: Schedule | None = None
    forget: bool = False
    reserve: Percent | None = None
    penalty: tuple[Penalty, ...] = ()
    param: Parametrization | None = None
    regrow: Regrow | None = None


class PrivateBlock(Word):
    """The settings of one `private`: how the twins of a module start."""

    init: Literal["copy", "fresh"] = "copy"


class PathBlock(Word):
    """The settings of one `path`. random: dropout and its like draw numbers of the path's `own`,
    or those `shared` with the first path that runs. The others make it cheaper in training: it
    sees the first part of each batch, smaller images, only every few steps from step `offset` on
    (before it, as if it had run earlier: steps whose remainder is the same); of filters and input
    channels it computes those that are `kept` alone, by a 2:4 weight it multiplies on a GPU's
    sparse tensor cores."""

    random: Literal["own", "shared"] = "own"
    batch: Percent | None = None
    size: Percent | None = None
    every: Time | None = None
    offset: Time | None = None
    compute: Literal["all", "kept"] = "all"


class Train(Word):
    """The `train` block."""

    epochs: Time
    optimizer: Optimizer
    lr: Rate = ConstantRate()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: Factor | None = None  # largest norm of all gradients together
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the averaged weights
    average: WeightAverage | None = None
    integrator: Integrator | None = None
    mirror: Mirror | None = None
    balance: Balance | None = None
    groups: tuple[WeightGroup, ...] = ()
    penalty: tuple[Penalty, ...] = ()  # on weights that no rule prunes
    stop: Stop | None = None
    checkpoint: Literal["last", "best"] = "last"  # which one is evaluated and exported
    reset: tuple[Time, ...] = ()  # when the optimizer forgets what it remembers
    accumulate: Annotated[int, Field(ge=1)] = 1  # batches for one step of the optimizer
    sync_norms: bool = False  # batch norms take their statistics over all processes
    seed: Annotated[int, Field(ge=0)] = 0


BLOCKS: dict[str, type[Word]] = {
    "recipe": AboutBlock,
    "model": ModelBlock,
    "data": DataBlock,
    "pruning": PruneBlock,
    "train": Train,
}

PARTS = ("kept", "reserve", "pruned", "rest")
