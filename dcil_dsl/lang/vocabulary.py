"""Every callable word of the language: one class each, one table for each kind of place.

In:   the arguments of a call, evaluated (values.py).
Out:  a validated, frozen value; pydantic's errors are mapped to codes by check.py.
Not:  what a word does; plan/ (targets, schedules), masking/ (scores), training/ (losses,
      optimisers, rates) and data/ (augmentation) do that.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Field

from dcil_dsl.extend import kinds
from dcil_dsl.extend.word import PathName, Word
from dcil_dsl.lang.rule_words import (
    L2,
    NM,
    Block,
    Channel,
    Constant,
    Cubic,
    Erk,
    Filter,
    Global,
    Gradient,
    Granularity,
    GrowAtRandom,
    GrowByGradient,
    Head,
    Lamp,
    Linear,
    Magnitude,
    Movement,
    Norm,
    Once,
    Penalty,
    Power,
    Random,
    Regrow,
    Schedule,
    Score,
    Sensitivity,
    Single,
    Square,
    Target,  # noqa: F401  read as v.Target
    Taylor,
    Uniform,
    Within,
)
from dcil_dsl.lang.train_words import (
    RK4,
    SGD,
    AdamW,
    ConstantRate,
    Cosine,
    Extrapolate,
    Heun,
    Implicit,
    Integrator,  # noqa: F401  read as v.Integrator
    InverseDirichlet,
    LatePhase,
    Multistep,
    Train,
)
from dcil_dsl.lang.values import Percent, Time

# -- views: what a path sees of a weight -------------------------------------------------------

# w * m, w, w * (1 - m); and ST-3's, shrunk by the threshold and scaled up again
View = Literal["masked", "full", "complement", "soft_threshold"]

# -- losses ------------------------------------------------------------------------------------


class CrossEntropy(Word):
    """`cross_entropy(path, smoothing=0, output=none)`, mean over the batch and its positions."""

    positional: ClassVar[int] = 1
    path: PathName
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    output: str | None = None


class Balanced(Word):
    """`balanced(beta=0.97)`: rare classes weigh more, by the effective number of their examples.

    w = (1 - beta) / (1 - beta^n) for n training examples. Cui et al. 2019, arXiv:1901.05555.
    """

    beta: Annotated[float, Field(gt=0, lt=1)]


class KL(Word):
    """`kl(student=, teacher=, temperature=1, output=none, classes=none)`.

    T^2 * KL(teacher || student), mean over the batch and its positions. The teacher's side
    carries no gradient. Hinton et al. 2015, arXiv:1503.02531, section 2. classes: what the
    teacher's shares are multiplied by first. Wang et al. 2022, arXiv:2204.04662.
    """

    student: PathName
    teacher: PathName
    temperature: Annotated[float, Field(gt=0)] = 1.0
    output: str | None = None
    classes: Balanced | None = None


class ModelLoss(Word):
    """`model(path)`: the loss that the model itself computes on that path."""

    positional: ClassVar[int] = 1
    path: PathName


LossTerm = Union[CrossEntropy, KL, ModelLoss, kinds.Loss]

# -- augmentation ------------------------------------------------------------------------------


class PadCrop(Word):
    """`pad_crop(4)`: pad by so many pixels, then crop the old size at random."""

    positional: ClassVar[int] = 1
    pixels: Annotated[int, Field(gt=0)]


class Flip(Word):
    """`flip()`: left-right, with probability p."""

    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5


class RandomResizedCrop(Word):
    """`random_resized_crop(224)`: a random part of random shape, resized."""

    positional: ClassVar[int] = 1
    size: Annotated[int, Field(gt=0)]


class RandAugment(Word):
    """`rand_augment(n=2, m=9)`: n random operations an image, at magnitude m of 0..30."""

    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=0, le=30)] = 9


class TrivialAugment(Word):
    """`trivial_augment()`: one random operation an image, at a random magnitude."""


class ColorJitter(Word):
    """`color_jitter(brightness=0.4)`: random factors of 1 - x .. 1 + x; hue in turns."""

    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Erase(Word):
    """`erase(0.25)`: a random box becomes the mean of the data, with probability p."""

    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5


class MixUp(Word):
    """`mixup(0.2)`: pairs of examples in part, the share from Beta(alpha, alpha)."""

    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]


class CutMix(Word):
    """`cutmix(1.0)`: a box of another image, its area's share from Beta(alpha, alpha)."""

    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]


Augment = Union[
    PadCrop, Flip, RandomResizedCrop, RandAugment, TrivialAugment, ColorJitter, Erase, MixUp, CutMix
]


# -- blocks ------------------------------------------------------------------------------------


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

    torch 2.14 fails where it makes one pixel of an image of bytes.
    """

    batch_size: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=2)] | None = None
    channels: Annotated[int, Field(ge=1)] = 3
    augment: tuple[Augment, ...] = ()


class PruneBlock(Word):
    """The settings of `pruning { ... }` and of one rule.

    Without a schedule the target holds from the first step; masks are recomputed every 16
    steps, as in the authors' code. `floor` and `ceiling`: the least and the largest density of
    a layer, None: one unit, all of it; `bounds`: of some of its layers together. `reserve`:
    so much of the budget, the best of what is pruned, may have an `update` of its own.
    `forget`: what is pruned becomes zero at once.
    """

    score: Score = Magnitude()
    schedule: Schedule = Constant()
    refresh: Time | tuple[Time, ...] = Time(16, "steps")
    freeze: Time | None = None
    floor: Percent | None = None
    ceiling: Percent | None = None
    bounds: tuple[Within, ...] = ()
    granularity: Granularity | None = None
    forget: bool = False
    reserve: Percent | None = None
    penalty: tuple[Penalty, ...] = ()
    param: Power | None = None
    regrow: Regrow | None = None


class PrivateBlock(Word):
    """The settings of one `private`: how the twins of a module start."""

    init: Literal["copy", "fresh"] = "copy"


class PathBlock(Word):
    """The settings of one `path`. random: dropout and its like draw numbers of the path's `own`,
    or those `shared` with the first path that runs. The others make it cheaper in training: it
    sees the first part of each batch, smaller images, every so many steps; of filters and input
    channels it computes those that are `kept` alone, by a 2:4 weight it multiplies on a GPU's
    sparse tensor cores."""

    random: Literal["own", "shared"] = "own"
    batch: Percent | None = None
    size: Percent | None = None
    every: Time | None = None
    compute: Literal["all", "kept"] = "all"


BLOCKS: dict[str, type[Word]] = {
    "recipe": AboutBlock, "model": ModelBlock, "data": DataBlock, "pruning": PruneBlock,
    "train": Train,
}  # fmt: skip

# -- which words a place takes ------------------------------------------------------------------

TARGETS = {
    "uniform": Uniform, "global": Global, "erk": Erk, "lamp": Lamp, "sensitivity": Sensitivity,
    "nm": NM,
}  # fmt: skip
GRANULARITIES = {
    "weight": Single, "filter": Filter, "channel": Channel, "head": Head, "block": Block,
}  # fmt: skip
SCORES = {
    "magnitude": Magnitude, "l2": L2, "taylor": Taylor, "movement": Movement,
    "gradient": Gradient, "random": Random,
}  # fmt: skip
PENALTIES = {"square": Square, "norm": Norm}
PARAMS = {"power": Power}
REGROWS = {"gradient": GrowByGradient, "random": GrowAtRandom}
SCHEDULES = {"cubic": Cubic, "linear": Linear, "once": Once, "constant": Constant}
LOSSES = {"cross_entropy": CrossEntropy, "kl": KL, "model": ModelLoss}
OPTIMIZERS = {"sgd": SGD, "adamw": AdamW}
INTEGRATORS = {"heun": Heun, "rk4": RK4, "extrapolate": Extrapolate, "implicit": Implicit}
AVERAGES = {"late_phase": LatePhase}
BALANCES = {"inverse_dirichlet": InverseDirichlet}
RATES = {"constant": ConstantRate, "multistep": Multistep, "cosine": Cosine}
AUGMENTS = {
    "pad_crop": PadCrop, "flip": Flip, "random_resized_crop": RandomResizedCrop,
    "rand_augment": RandAugment, "trivial_augment": TrivialAugment, "color_jitter": ColorJitter,
    "erase": Erase, "mixup": MixUp, "cutmix": CutMix,
}  # fmt: skip

# `augment` is in the order of these: pixels (0), normalised images, pairs of examples.
AUGMENT_STAGES: dict[type[Word], int] = {Erase: 1, MixUp: 2, CutMix: 2}

PLACES: dict[tuple[type[Word], str], tuple[str, dict[str, type[Word]]]] = {
    (PruneBlock, "score"): ("a score", SCORES),
    (PruneBlock, "schedule"): ("a schedule", SCHEDULES),
    (PruneBlock, "granularity"): ("a granularity", GRANULARITIES),
    (PruneBlock, "penalty"): ("a penalty", PENALTIES),
    (PruneBlock, "param"): ("a parametrisation", PARAMS),
    (PruneBlock, "regrow"): ("a way to grow", REGROWS),
    (PruneBlock, "bounds"): ("a bound", {"within": Within}),
    (Uniform, "granularity"): ("a granularity", GRANULARITIES),
    (Global, "granularity"): ("a granularity", GRANULARITIES),
    (DataBlock, "augment"): ("an augmentation", AUGMENTS),
    (Train, "optimizer"): ("an optimizer", OPTIMIZERS),
    (Train, "lr"): ("a learning rate over time", RATES),
    (Train, "integrator"): ("an integrator", INTEGRATORS),
    (Train, "average"): ("an average of weights", AVERAGES),
    (Train, "balance"): ("a balance of losses", BALANCES),
    (KL, "classes"): ("a weighting of classes", {"balanced": Balanced}),
}



def small_words() -> set[str]:
    """Every word that can stand as a value, and what is written like one."""
    tables = [table for _, table in PLACES.values()]
    words = {word for table in (TARGETS, LOSSES, *tables) for word in table}
    return words | {*VIEWS, "true", "false", "none"}


# Settings that are lists of words.
LISTS = ("augment", "bounds", "penalty")

# What `data` names where it is a set that the command line opens (data/places.py). Their images
# are grey or in colour; data that a program brings may have any number of channels.
DATA_SETS = (
    "digits", "fashion-mnist", "cifar10", "cifar100", "imagenet", "imagefolder", "webdataset",
    "synthetic",
)  # fmt: skip

VIEWS = ("masked", "full", "complement", "soft_threshold")
METRICS = ("top1", "top5", "sparsity")
PARTS = ("kept", "reserve", "pruned", "rest")
