"""What a Plan holds: its records, and PlanFields, which has them all. Plain data, in steps.

In:   resolve.py fills it from a recipe and a traced model, format_1.py from an older file.
Out:  the fields of the Plan (plan.py), checked against one another.
Not:  no tensors, no modules, no units but steps, counts of weights and fractions.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from dcil_dsl.plan.format_1 import upgrade
from dcil_dsl.plan.group import (
    Group,
    PlanRecord,
)
from dcil_dsl.words.augment import Augment
from dcil_dsl.words.losses import Loss, Penalty
from dcil_dsl.words.optimizers import Optimizer
from dcil_dsl.words.rates import Rate, Stop
from dcil_dsl.words.registry import Stored
from dcil_dsl.words.step import Balance, Integrator, Mirror, WeightAverage
from dcil_dsl.words.views import AnyView, Teacher
from dcil_dsl.words.weight_groups import WeightGroup
from dcil_dsl.words.word import Word, every_word

FORMAT: Literal[2] = 2


# -- time ------------------------------------------------------------------------------------


class Window(PlanRecord):
    """Steps start..stop, stop excluded; stop None is the end of the run.

    every    only the steps whose remainder by this is one of `offsets`
    others   only the other steps
    """

    start: int = 0
    stop: int | None = None
    every: PositiveInt = 1
    offsets: tuple[NonNegativeInt, ...] = (0,)
    others: bool = False

    @model_validator(mode="after")
    def _check(self) -> Window:
        if not self.offsets or max(self.offsets) >= self.every:
            raise ValueError("offsets are not remainders of its stride")
        if len(set(self.offsets)) != len(self.offsets):
            raise ValueError("an offset is given twice")
        return self

    def covers(self, step: int) -> bool:
        is_inside = self.start <= step and (self.stop is None or step < self.stop)
        return is_inside and (step % self.every in self.offsets) != self.others

    def num_steps(self, end: int) -> int:
        """How many of the steps before `end` it covers."""
        stop = end if self.stop is None else min(self.stop, end)
        length = max(0, stop - self.start)
        own = (
            sum(
                _rounds(stop - o, self.every) - _rounds(self.start - o, self.every)
                for o in self.offsets
            )
            if length
            else 0
        )
        return length - own if self.others else own


def _rounds(count: int, every: int) -> int:
    """The quotient, rounded up."""
    return -(-count // every)


# -- weights -----------------------------------------------------------------------------------


class PlanLayer(PlanRecord):
    """One weight that could be pruned, in execution order.

    parameter   its name in the model, "layer1.0.conv1.weight"
    out_axis    the axis of the shape that counts outputs; in_axis: the one that counts the
                inputs of a group (model/layers.py)
    groups      in how many groups outputs and inputs fall
    macs        multiply-accumulates for one example, None where no input was given
    group       which of Plan.groups prunes it, None where it is kept
    rule        where the rule stands that decided it, "recipes/x.prune:33"; None where no rule did
    is_plain    every use is a separate call, so that its kept units can be computed alone
    """

    parameter: str
    module: str
    type: str
    shape: tuple[NonNegativeInt, ...]
    out_axis: int = 0
    in_axis: int = 1
    groups: int = 1
    macs: int | None = None
    group: int | None = None
    rule: str | None = None
    is_plain: bool = True

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)


# -- paths -----------------------------------------------------------------------------------


class Path(PlanRecord):
    """One of the runs of the model in a step, on its own view of the weights.

    name     a Python identifier: it becomes part of names in the code of the graph
    random   "shared": it draws the random numbers that the first path of a phase draws
    batch    the share of the examples that it sees
    size     the side of its images, as a share of the full side
    every    it runs at the steps whose remainder by this is `offset`
    compute  "kept": in pruned layers it computes only the kept filters, or input channels
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    view: Stored[AnyView]
    random: Literal["own", "shared"] = "own"
    batch: Annotated[float, Field(gt=0, le=1)] = 1.0
    size: Annotated[float, Field(gt=0, le=1)] = 1.0
    every: PositiveInt = 1
    offset: NonNegativeInt = 0
    compute: Literal["all", "kept"] = "all"

    @property
    def cost(self) -> float:
        """The cost of a step of this path, in steps on full batches, by the number of pixels."""
        return self.batch * self.size**2


class TeacherPath(PlanRecord):
    """A network that only teaches.

    size  the multiply-accumulates of its forward over those of the model's; None: not counted
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    network: Stored[Teacher]
    size: Annotated[float, Field(ge=0)] | None = None


class Private(PlanRecord):
    """A module of which each path has its own: the deployed path the original, the others a twin.

    init  whether a twin starts as a "copy" of the original or "fresh"
    """

    module: str
    init: Literal["copy", "fresh"] = "copy"


class Shares(PlanRecord):
    """The coefficient of one path's gradient on each part of the shared weights.

    kept, pruned  the weights of a rule whose mask is True, or False
    reserve       the best of the pruned weights, where the rule has a reserve
    rest          the weights that no rule prunes
    """

    kept: float = 0.0
    pruned: float = 0.0
    reserve: float = 0.0
    rest: float = 0.0


class Phase(PlanRecord):
    """A stretch of steps in which the same paths run and the same updates hold.

    shares is one row per entry of Plan.paths, in its order; paths that do not run have zeros.
    teachers: the networks that run next to the paths
    """

    window: Window
    paths: tuple[str, ...]
    shares: tuple[Shares, ...]
    teachers: tuple[str, ...] = ()


class WeightedLoss(PlanRecord):
    """coefficient * term while the window is open. `name` is unique: "kl(sparse<-dense)".

    batch  the share of the examples, the first ones, that every path of the term sees
    """

    name: str
    coefficient: float
    term: Stored[Loss]
    window: Window = Window()
    batch: float = 1.0


# -- training, data, model, claims --------------------------------------------------------------


class RestPenalty(PlanRecord):
    """A penalty on weights that no rule prunes. axes: of each parameter, which counts filters."""

    word: Stored[Penalty]
    parameters: tuple[str, ...]
    axes: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _check(self) -> RestPenalty:
        if not self.parameters or len(self.axes) != len(self.parameters):
            raise ValueError("a penalty has not one axis for each of its parameters")
        return self


class TrainPlan(PlanRecord):
    """The `train` block, in steps; the words in it are classes of words/.

    ema          the decay of the average that is evaluated and deployed; None: the weights are
    accumulate   batches in one step of the optimizer; the last step of an epoch may have fewer
    sync_norms   batch norms take their statistics over all processes
    average, integrator, mirror, balance  words that change the step (words/step.py)
    groups       optimizer settings for the weights of some layers
    penalties    what is added to the gradients of weights that no rule prunes
    checkpoint   the epoch whose weights are deployed
    reset        the steps before whose update the optimizer's state begins anew
    """

    num_epochs: NonNegativeInt
    optimizer: Stored[Optimizer]
    rate: Stored[Rate]
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float | None = None
    ema: float | None = None
    accumulate: PositiveInt = 1
    sync_norms: bool = False
    average: Stored[WeightAverage] | None = None
    integrator: Stored[Integrator] | None = None
    mirror: Stored[Mirror] | None = None
    balance: Stored[Balance] | None = None
    groups: tuple[Stored[WeightGroup], ...] = ()
    penalties: tuple[RestPenalty, ...] = ()
    stop: Stored[Stop] | None = None
    checkpoint: Literal["last", "best"] = "last"
    reset: tuple[NonNegativeInt, ...] = ()
    seed: int = 0


class Data(PlanRecord):
    """The `data` block. image_size, and length of texts in tokens, None: the dataset's own."""

    name: str | None = None
    batch_size: int = 128
    image_size: int | None = None
    length: int | None = None
    channels: int = 3
    augment: tuple[Stored[Augment], ...] = ()


class Model(PlanRecord):
    """The `model` block: a SPEC or the name of a class, and the arguments it is built with."""

    name: str | None = None
    classes: int | None = None
    options: dict[str, float | int | bool | str | None] = {}


class OpaqueModule(PlanRecord):
    """A module that is one call of the graph, rewritten inside at each call. "" is the model."""

    module: str
    type: str
    reason: str


class Unprunable(PlanRecord):
    """A module with a weight of a kind that can be pruned, which no rule can prune, and why."""

    module: str
    type: str
    reason: str


class Expectation(PlanRecord):
    """One line of the `expect` block. value: a fraction where the recipe says percent."""

    metric: str
    compare: str
    value: float


class About(PlanRecord):
    """Which recipe this is. sha256: of its closed text, without `extends`, `let` and `--set`."""

    name: str
    title: str | None = None
    version: str | None = None
    reference: str | None = None
    sha256: str
    overrides: dict[str, str] = {}


class Size(PlanRecord):
    """An input of the model. dtype as torch names it: "float32"."""

    shape: tuple[NonNegativeInt, ...]
    dtype: str = Field(pattern=r"^(bool|(uint|int|b?float|complex)\d+\w*)$")


class PlanFields(PlanRecord):
    """Everything that is decided about a run. Layers are in execution order, groups in rule order.

    opaque  the modules that could not be traced, with the reason
    inputs  the arguments of the model's forward that its graph takes; None: those that have no
            default, or all, where the model is opaque
    fixed   arguments that are not tensors, with the value that the graph has for each
    sizes   of the example inputs, on which the forward's control flow may depend; empty if some
            inputs are not tensors
    """

    format: Literal[2] = FORMAT
    recipe: About
    model: Model
    data: Data
    steps_per_epoch: PositiveInt
    num_steps: NonNegativeInt
    layers: tuple[PlanLayer, ...]
    groups: tuple[Group, ...]
    paths: tuple[Path, ...]
    privates: tuple[Private, ...]
    phases: tuple[Phase, ...]
    losses: tuple[WeightedLoss, ...]
    deploy: str
    train: TrainPlan
    teachers: tuple[TeacherPath, ...] = ()
    expect: tuple[Expectation, ...] = ()
    opaque: tuple[OpaqueModule, ...] = Field(
        default=(), validation_alias=AliasChoices("opaque", "whole")
    )
    out_of_reach: tuple[Unprunable, ...] = ()
    inputs: tuple[str, ...] | None = None
    fixed: dict[str, bool | int | float | str | None] = {}
    sizes: dict[str, Size] = {}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    @model_validator(mode="before")
    @classmethod
    def _without_facts(cls, values: object) -> object:
        """`dcil plan --json` adds what follows from the plan (facts.py); it is not read back."""
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != "facts"}
            return upgrade(values) if values.get("format") == 1 else values
        return values

    @model_validator(mode="after")
    def _check(self) -> PlanFields:
        names = [path.name for path in self.paths]
        known = {layer.parameter for layer in self.layers}
        for phase in self.phases:
            if len(phase.shares) != len(names) or len(set(phase.paths)) != len(phase.paths):
                raise ValueError("a phase has not one row of shares, and no path twice")
        taught = {teacher.name for teacher in self.teachers}
        named = {self.deploy, *(name for phase in self.phases for name in phase.paths)}
        named |= {name for loss in self.losses for name in loss.term.learners}
        named |= {x.network.follows for x in self.teachers if x.network.follows is not None}
        teaching = {name for loss in self.losses for name in loss.term.paths} | {
            name for phase in self.phases for name in phase.teachers
        }
        both = len(taught) + len(names)
        if (
            len({*names, *taught}) != both
            or not named <= set(names)
            or not teaching <= {*names, *taught}
            or not taught.isdisjoint(name for phase in self.phases for name in phase.paths)
        ):
            raise ValueError("paths do not have one name each, or others are named")
        if len({entry.module for entry in self.privates}) != len(self.privates):
            raise ValueError("a module is private twice")
        if not self.phases:
            raise ValueError("no phase says which path runs")
        if any(name not in known for group in self.groups for name in group.parameters):
            raise ValueError("a group prunes a weight that is not in a layer")
        if any((layer.group or 0) not in range(max(len(self.groups), 1)) for layer in self.layers):
            raise ValueError("a layer belongs to a missing group")
        return self

    def lr_at(self, step: int) -> float:
        """The learning rate of the update number `step`, counted from 0."""
        return self.train.rate.rate(self.train.optimizer.lr, step, self.num_steps)

    def words(self) -> tuple[Word, ...]:
        """Every word of the plan."""
        return tuple(every_word(self))

    @property
    def has_penalties(self) -> bool:
        """Whether a step adds penalties to its gradients."""
        return bool(self.train.penalties) or any(group.penalties for group in self.groups)

    @property
    def deployed_view(self) -> AnyView:
        return next(path.view for path in self.paths if path.name == self.deploy)

    @property
    def prunes(self) -> bool:
        """Whether the deployed path has zeros where its masks prune."""
        return self.deployed_view.prunes

    def phase_at(self, step: int) -> Phase:
        """The phase a step belongs to; the last one for steps beyond the run."""
        for phase in self.phases:
            if phase.window.covers(step):
                return phase
        return self.phases[-1]
