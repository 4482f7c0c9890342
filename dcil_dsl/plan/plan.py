"""The Plan: what is pruned, by how much, when, and who learns from whom. Plain data, in steps.

In:   resolve.py fills it from a recipe and a traced model.
Out:  compiler/, training/ and export/ read it and nothing of the language; it goes to JSON
      and back unchanged, and lies in every run folder and checkpoint.
Not:  no tensors, no modules, no units but steps, counts of weights and fractions.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

FORMAT = 1


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# -- time ------------------------------------------------------------------------------------


class Window(Part):
    """Steps start..stop, stop excluded; stop None is the end of the run."""

    start: int = 0
    stop: int | None = None

    def covers(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)


class Schedule(Part):
    """Sparsity over time; schedule.py evaluates it.

    kind "cubic" | "linear": from `initial` at `start` to the target at `stop`; it moves only
    at multiples of `grid` steps (1: at every step). "once": 0 before `start`, then the target.
    "constant": the target throughout.
    """

    kind: Literal["cubic", "linear", "once", "constant"]
    start: int = 0
    stop: int = 0
    initial: float = 0.0
    grid: int = 1


# -- weights -----------------------------------------------------------------------------------


class Layer(Part):
    """One weight that could be pruned, in execution order.

    parameter   its name in the model, "layer1.0.conv1.weight"
    out_axis    the axis of the shape that counts outputs; in_axis: the one that counts the
                inputs of a group (graph/layers.py)
    groups      in how many groups outputs and inputs fall
    macs        multiply-accumulates for one example, None where no input was given
    group       which of Plan.groups prunes it, None where it is kept
    rule        where the rule stands that decided it, "recipes/x.prune:33"; None where no rule did
    """

    parameter: str
    module: str
    type: str
    shape: tuple[int, ...]
    out_axis: int = 0
    in_axis: int = 1
    groups: int = 1
    macs: int | None = None
    group: int | None = None
    rule: str | None = None

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)


class Single(Part):
    """Each weight by itself."""

    kind: Literal["weight"] = "weight"


class Pattern(Part):
    """Of every m consecutive input channels, n weights stay: 2:4."""

    kind: Literal["nm"] = "nm"
    n: int
    m: int


class Block(Part):
    """height output channels by width input channels, at one position of the kernel."""

    kind: Literal["block"] = "block"
    height: int
    width: int


class Whole(Part):
    """All weights of an output channel, of an input channel, of an attention head."""

    kind: Literal["filter", "channel", "head"]


Unit = Annotated[Union[Single, Pattern, Block, Whole], Field(discriminator="kind")]


class Cut(Part):
    """How a weight falls into units: viewed in `shape`, a unit is one index of the dimensions
    `units` and all of the others. A filter of a convolution: (O, I * kh * kw), (0,)."""

    shape: tuple[int, ...]
    units: tuple[int, ...]

    @property
    def num_units(self) -> int:
        return math.prod(self.shape[i] for i in self.units)


class Score(Part):
    """How much a single weight matters; masking/score.py computes it.

    average  None: the last value ("magnitude" |w|, "l2" w^2), or the sum over the steps ("taylor"
             |w g|, "movement" -w g, "gradient" |g|); else the decay of a moving average over them
    path     whose gradient g is, dL/dv at the view v that this path sees; None: no gradient
    redraw   "random": another draw for every mask; else one draw for the whole run
    """

    kind: Literal["magnitude", "l2", "taylor", "movement", "gradient", "random"]
    average: float | None = None
    path: str | None = None
    redraw: bool = False

    @property
    def has_state(self) -> bool:
        """Whether it depends on more than the weights: then a buffer is kept for each."""
        return self.average is not None or self.path is not None


class Penalty(Part):
    """A term whose gradient is added to that of the weights of one part, layer by layer.

    form    "square": weight / 2 * sum of w^2, gradient weight * w
            "norm":   weight * sqrt(sum of w^2), gradient weight * w / sqrt(sum of w^2)
    stairs  the weight rises over the run in so many equal steps, from 0; None: it is constant
    """

    form: Literal["square", "norm"]
    part: Literal["kept", "reserve", "pruned"]
    weight: float
    stairs: int | None = None


class Regrow(Part):
    """At each refresh a share of the kept weights is dropped and as many are grown.

    share  of the kept weights at step 0; it falls to 0 at `until` by half a cosine
    path   whose gradient says where to grow; None: chance says
    """

    share: float
    until: int
    path: str | None = None


def _score(value: object) -> object:
    """A bare kind stands for its defaults, as it does in a recipe."""
    return {"kind": value} if isinstance(value, str) else value


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
    num_weights: tuple[int, ...]
    allocation: Literal["global", "uniform"]
    shared_by: Literal["target", "erk", "sensitivity", "lamp"] = "target"
    target: float
    targets: tuple[float, ...] = ()
    of: Literal["weights", "units", "flops"] = "weights"
    unit: Unit = Single()
    cuts: tuple[Cut, ...] = ()
    spans: tuple[int, ...] = ()
    costs: tuple[int, ...] = ()
    floors: tuple[int, ...]
    ceilings: tuple[int, ...] = ()
    hardware: tuple[str, ...] = ()
    score: Annotated[Score, BeforeValidator(_score)]
    schedule: Schedule
    refresh: int
    moments: tuple[int, ...] = ()
    freeze: int | None = None
    forget: bool = False
    reserve: float = 0.0
    penalties: tuple[Penalty, ...] = ()
    power: float | None = None
    regrow: Regrow | None = None

    @property
    def kept_score(self) -> Score | None:
        """The score that needs a buffer; None where masks follow from the weights alone."""
        if self.regrow is not None and self.regrow.path is not None:
            return Score(kind="gradient", average=0.0, path=self.regrow.path)  # the last step's
        return self.score if self.score.has_state else None


# -- paths -----------------------------------------------------------------------------------


class Path(Part):
    name: str
    view: Literal["masked", "full", "complement", "soft_threshold"]


class Private(Part):
    """A module that each path has for itself. init: "copy" of the original, or "fresh"."""

    module: str
    init: Literal["copy", "fresh"] = "copy"


class Shares(Part):
    """The coefficient of one path's gradient on each part of the shared weights."""

    kept: float = 0.0
    pruned: float = 0.0
    reserve: float = 0.0
    rest: float = 0.0


class Phase(Part):
    """A stretch of steps in which the same paths run and the same updates hold.

    shares is one row per entry of Plan.paths, in its order; paths that do not run have zeros.
    """

    window: Window
    paths: tuple[str, ...]
    shares: tuple[Shares, ...]


class CrossEntropy(Part):
    """`output`: the key, field or place of the logits in what the path returns; None: as found."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    path: str
    smoothing: float = 0.0
    output: str | None = None


class KL(Part):
    kind: Literal["kl"] = "kl"
    student: str
    teacher: str
    temperature: float = 1.0
    output: str | None = None


class ModelLoss(Part):
    """The loss that the model computes by itself."""

    kind: Literal["model"] = "model"
    path: str


class Loss(Part):
    """coefficient * term while the window is open. `name` is unique: "kl(sparse<-dense)"."""

    name: str
    coefficient: float
    term: Annotated[Union[CrossEntropy, KL, ModelLoss], Field(discriminator="kind")]
    window: Window = Window()


# -- training ----------------------------------------------------------------------------------


class SGD(Part):
    kind: Literal["sgd"] = "sgd"
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


class AdamW(Part):
    kind: Literal["adamw"] = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01


class Rate(Part):
    """The learning rate as a pure function of the step; training/optim.py evaluates it.

    For `warmup` steps it rises linearly from warmup_from to the optimiser's lr; then
    "constant": lr; "multistep": lr * gamma^(number of `at` reached);
    "cosine": half a cosine from lr to `final` at the last step.
    """

    kind: Literal["constant", "multistep", "cosine"]
    warmup: int = 0
    warmup_from: float = 0.0
    at: tuple[int, ...] = ()
    gamma: float = 0.1
    final: float = 0.0


class Train(Part):
    """accumulate  batches for one step of the optimiser, the last of an epoch may have fewer
    sync_norms   batch norms take their statistics over all ranks
    """

    num_epochs: int
    optimizer: Annotated[Union[SGD, AdamW], Field(discriminator="kind")]
    rate: Rate
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float | None = None
    ema: float | None = None
    accumulate: int = 1
    sync_norms: bool = False
    seed: int = 0


class Augment(Part):
    """One augmentation by its word, with its settings: ("pad_crop", {"pixels": 4})."""

    word: str
    settings: dict[str, float | int | bool | str] = {}


class Data(Part):
    """image_size None: as the dataset has them."""

    name: str | None = None
    batch_size: int = 128
    image_size: int | None = None
    channels: int = 3
    augment: tuple[Augment, ...] = ()


class Model(Part):
    name: str | None = None
    classes: int | None = None
    options: dict[str, float | int | bool | str | None] = {}


class KeptWhole(Part):
    """A module that is one call of the graph, rewritten inside at each call. "" is the model."""

    module: str
    type: str
    reason: str


class Expectation(Part):
    metric: str
    compare: str
    value: float


class About(Part):
    """Who the recipe is. `sha256` is of its closed text."""

    name: str
    title: str | None = None
    version: str | None = None
    reference: str | None = None
    sha256: str
    overrides: dict[str, str] = {}


class Plan(Part):
    """See the parts. Layers stand in execution order; groups in the order of their rules.

    whole   the modules that could not be traced, with the reason
    inputs  the arguments of the model's forward that its graph takes; None: those that have no
            default, or all, where the model is whole
    fixed   arguments that are no tensors, with the value that the graph has for each
    """

    format: Literal[1] = FORMAT
    recipe: About
    model: Model
    data: Data
    steps_per_epoch: int
    num_steps: int
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    paths: tuple[Path, ...]
    privates: tuple[Private, ...]
    phases: tuple[Phase, ...]
    losses: tuple[Loss, ...]
    deploy: str
    train: Train
    expect: tuple[Expectation, ...] = ()
    whole: tuple[KeptWhole, ...] = ()
    inputs: tuple[str, ...] | None = None
    fixed: dict[str, bool | int | float | str | None] = {}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What to_json or `dcil plan --json` wrote; ValidationError where it is no plan."""
        return cls.model_validate_json(text)

    @model_validator(mode="before")
    @classmethod
    def _without_facts(cls, values: object) -> object:
        """`dcil plan --json` adds what follows from the plan (facts.py); it is not read back."""
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if name != "facts"}
        return values

    def phase_at(self, step: int) -> Phase:
        """The phase a step belongs to; the last one for steps beyond the run."""
        for phase in self.phases:
            if phase.window.covers(step):
                return phase
        return self.phases[-1]
