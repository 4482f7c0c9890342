"""The checked recipe: what the language means, typed, closed and with every span.

In:   a linked file (link.py), checked word by word against py (check.py).
Out:  Recipe, which plan/resolve.py reads. Nothing after it sees the syntax tree, but for
      selectors, whose nodes (ast.py) wait for a model.
Not:  no layers, no steps: those need a model and a length of the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dcil_dsl import words
from dcil_dsl.diagnostics.source import Span
from dcil_dsl.lang import ast
from dcil_dsl.words.augment import Augment
from dcil_dsl.words.averages import WeightAverage
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.granularity import Granularity, Single
from dcil_dsl.words.parametrizations import Parametrization
from dcil_dsl.words.penalties import Penalty
from dcil_dsl.words.regrow import Regrow
from dcil_dsl.words.schedules import Schedule
from dcil_dsl.words.scores import AnyScore
from dcil_dsl.words.targets import Target
from dcil_dsl.words.units import Percent, Time
from dcil_dsl.words.views import AnyView


def _span():
    return field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class About:
    """`recipe name { ... }`. All empty where the recipe has no such block."""

    name: str | None = None
    title: str | None = None
    version: str | None = None
    reference: str | None = None
    uses: tuple[str, ...] = ()  # packages whose words it knows


@dataclass(frozen=True, kw_only=True)
class Model:
    """`model name { classes = 10 ... }`: what the recipe was written for.

    `options` are keyword arguments for the callable that builds the model, plain Python
    numbers, strings and booleans, `classes` excluded.
    """

    name: str | None = None
    classes: int | None = None
    options: tuple[tuple[str, object], ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Data:
    """`data name { ... }`. `image_size` None: as the dataset has them."""

    name: str | None = None
    batch_size: int | None = None
    image_size: int | None = None
    channels: int = 3
    augment: tuple[Augment, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """`within(shortcuts, floor=30%)` of a rule: a density of these layers together."""

    name: str
    selector: ast.Selector
    floor: Percent | None = None
    ceiling: Percent | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Prune:
    """One `prune` rule with the `pruning` block's settings already merged in.

    `target` carries the allocation and the final sparsity. `granularity` is the rule's, or
    what its target says; beside an N:M target it means nothing. `floor` and `ceiling`: the
    least and the largest density a layer may be left with; None: one unit, all of it.
    """

    selector: ast.Selector
    target: Target
    score: AnyScore
    schedule: Schedule
    refresh: Time | tuple[Time, ...]
    freeze: Time | None = None
    floor: Percent | None = None
    ceiling: Percent | None = None
    bounds: tuple[Bound, ...] = ()
    granularity: Granularity = Single()
    forget: bool = False
    reserve: Percent | None = None
    penalty: tuple[Penalty, ...] = ()
    param: Parametrization | None = None
    regrow: Regrow | None = None
    span: Span = _span()  # the whole rule's first line: `prune ... to ...`
    target_span: Span = _span()
    schedule_span: Span | None = field(default=None, compare=False, repr=False)
    floor_span: Span | None = field(default=None, compare=False, repr=False)
    ceiling_span: Span | None = field(default=None, compare=False, repr=False)
    freeze_span: Span | None = field(default=None, compare=False, repr=False)
    granularity_span: Span | None = field(default=None, compare=False, repr=False)
    spans: dict[str, Span] = field(default_factory=dict, compare=False, repr=False)  # by setting


@dataclass(frozen=True, kw_only=True)
class Keep:
    """One `keep` rule: these layers lose nothing."""

    selector: ast.Selector
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Path:
    """`path name = view { random = own | shared }`."""

    name: str
    view: AnyView
    random: str = "own"
    batch: Percent | None = None
    size: Percent | None = None
    every: Time | None = None
    compute: str = "all"
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Update:
    """`update parts by share * path + ...`: one row of the matrix part x path."""

    parts: tuple[str, ...]  # of "kept", "pruned", "rest"
    shares: tuple[tuple[str, float], ...]  # (path, coefficient)
    start: Time | None = None
    stop: Time | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Private:
    """`private selector { init = copy | fresh }`: one module per path."""

    selector: ast.Selector
    init: str = "copy"
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """`loss coefficient * term from .. until ..`."""

    coefficient: float
    term: words.Loss
    start: Time | None = None
    stop: Time | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """`top1 >= 92.4%` of an `expect` block."""

    metric: str
    compare: str  # one of == != <= >= < >
    value: float  # a fraction where the recipe says percent; else a number
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Average:
    """`average` of `train` with the layers that it names."""

    word: WeightAverage
    selector: ast.Selector
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one experiment says. `text` is the closed text (`resolved.prune`)."""

    about: About
    model: Model
    data: Data
    rules: tuple[Prune | Keep, ...]
    paths: tuple[Path, ...]
    updates: tuple[Update, ...]
    privates: tuple[Private, ...]
    losses: tuple[Loss, ...]
    deploy: str
    train: Train
    average: Average | None = None
    expect: tuple[Expectation, ...] = ()
    overrides: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # of --set
    warnings: tuple = field(default=(), compare=False)  # Diagnostic values of the check
    given: str = field(default="", compare=False, repr=False)  # the text as it was given
    text: str = field(default="", compare=False, repr=False)  # after extends, let and --set
    mix_span: Span | None = field(default=None, compare=False, repr=False)
    train_span: Span | None = field(default=None, compare=False, repr=False)
    balance_span: Span | None = field(default=None, compare=False, repr=False)
    rate_span: Span | None = field(default=None, compare=False, repr=False)
