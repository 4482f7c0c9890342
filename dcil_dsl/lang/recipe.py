"""The checked recipe: what the language means, typed, closed and with every span.

In:   a linked file (link.py), checked word by word against py (check.py).
Out:  Recipe, which plan/resolve.py reads. Nothing after it sees the syntax tree, but for
      selectors, whose nodes (ast.py) wait for a model.
Not:  no layers, no steps: those need a model and a length of the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dcil_dsl import words
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import Diagnostic
from dcil_dsl.diagnostics.html import preformatted
from dcil_dsl.diagnostics.source import Span
from dcil_dsl.lang import ast
from dcil_dsl.words.augment import Augment
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.granularity import Granularity, Single
from dcil_dsl.words.losses import Penalty
from dcil_dsl.words.schedules import Regrow, Schedule
from dcil_dsl.words.scores import AnyScore
from dcil_dsl.words.step import WeightAverage
from dcil_dsl.words.targets import Target
from dcil_dsl.words.units import Percent, Time
from dcil_dsl.words.views import AnyView, Parametrization, Teacher
from dcil_dsl.words.weight_groups import WeightGroup

Option = bool | int | float | str | None  # a setting of a model that its builder takes


def _span() -> Any:
    return field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class RecipeAbout:
    """`recipe name { ... }`. All empty where the recipe has no such block."""

    name: str | None = None
    title: str | None = None
    version: str | None = None
    reference: str | None = None
    uses: tuple[str, ...] = ()  # packages whose words it knows


@dataclass(frozen=True, kw_only=True)
class RecipeModel:
    """`model name { classes = 10 ... }`: what the recipe was written for.

    `options` are keyword arguments for the callable that builds the model, plain Python
    numbers, strings and booleans, `classes` excluded.
    """

    name: str | None = None
    classes: int | None = None
    options: tuple[tuple[str, Option], ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class RecipeData:
    """`data name { ... }`. `image_size`, `length` None: as the dataset has them."""

    name: str | None = None
    batch_size: int | None = None
    image_size: int | None = None
    length: int | None = None
    channels: int = 3
    augment: tuple[Augment, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class BoundRule:
    """`within(shortcuts, floor=30%)` of a rule: a density of these layers together."""

    name: str
    selector: ast.Selector
    floor: Percent | None = None
    ceiling: Percent | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class PruneRule:
    """One `prune` rule with the `pruning` block's settings already merged in.

    `target` carries the allocation and the final sparsity. `granularity` is the rule's, or
    that of its target; ignored with an N:M target. `floor` and `ceiling`: the
    least and the largest density a layer may be left with; None: one unit, all of it.
    `filter_floor`: the least number, or share, of the weights of each filter. `before`: the rule
    that prunes whole units of these layers first; the target is of what it leaves.
    """

    selector: ast.Selector
    target: Target
    score: AnyScore
    schedule: Schedule
    refresh: Time | tuple[Time, ...]
    freeze: Time | None = None
    floor: Percent | None = None
    filter_floor: int | Percent | None = None
    ceiling: Percent | None = None
    bounds: tuple[BoundRule, ...] = ()
    granularity: Granularity = Single()
    before: PruneRule | None = None
    forget: bool = False
    reserve: Percent | None = None
    penalty: tuple[Penalty, ...] = ()
    param: Parametrization | None = None
    regrow: Regrow | None = None
    span: Span = _span()  # the first line of the rule: `prune ... to ...`
    spans: dict[str, Span] = field(compare=False, repr=False)  # of the target and the settings

    @property
    def unit(self) -> Granularity:
        """The units that are pruned as a whole."""
        return self.target.pattern or self.granularity

    def at(self, *names: str) -> Span:
        """The place of the first of these settings that is given; else the whole rule."""
        return next((self.spans[name] for name in names if name in self.spans), self.span)


@dataclass(frozen=True, kw_only=True)
class KeepRule:
    """One `keep` rule: these layers lose nothing."""

    selector: ast.Selector
    span: Span = _span()


def replaced_rules(rules: Sequence[PruneRule | KeepRule]) -> dict[int, int]:
    """For each rule that a later one of the same file replaces: the index of the next rule with
    the same selector."""
    found: dict[int, int] = {}
    latest: dict[object, int] = {}
    for index in reversed(range(len(rules))):
        key = (id(rules[index].span.source), rules[index].selector)
        if key in latest:
            found[index] = latest[key]
        latest[key] = index
    return found


@dataclass(frozen=True, kw_only=True)
class PathRule:
    """`path name = view { random = own | shared }`."""

    name: str
    view: AnyView
    random: Literal["own", "shared"] = "own"
    batch: Percent | None = None
    size: Percent | None = None
    every: Time | None = None
    offset: Time | None = None
    compute: Literal["all", "kept"] = "all"
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class TeacherRule:
    """`path name = teacher(...)`: a network that only teaches."""

    name: str
    word: Teacher
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """`update parts by share * path + ...`: one row of the matrix part x path."""

    parts: tuple[str, ...]  # of "kept", "pruned", "rest"
    shares: tuple[tuple[str, float], ...]  # (path, coefficient)
    start: Time | None = None
    stop: Time | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class PrivateRule:
    """`private selector { init = copy | fresh }`: one module per path."""

    selector: ast.Selector
    init: Literal["copy", "fresh"] = "copy"
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class LossRule:
    """`loss coefficient * term from .. until ..`."""

    coefficient: float
    term: words.Loss
    start: Time | None = None
    stop: Time | None = None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class ExpectRule:
    """`top1 >= 92.4%` of an `expect` block."""

    metric: str
    compare: str  # one of == != <= >= < >
    value: float  # a fraction where the recipe says percent; else a number
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class AverageRule:
    """`average` of `train` with the layers that it names."""

    word: WeightAverage
    selector: ast.Selector
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """A word of `groups` in `train`, with the layers that it names, if any."""

    word: WeightGroup
    selector: ast.Selector | None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class PenaltyRule:
    """A word of `penalty` in `train`, with the layers that it names, if any."""

    word: Penalty
    selector: ast.Selector | None
    span: Span = _span()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one experiment says. `text` is the closed text (`resolved.prune`)."""

    about: RecipeAbout
    model: RecipeModel
    data: RecipeData
    rules: tuple[PruneRule | KeepRule, ...]
    paths: tuple[PathRule, ...]
    updates: tuple[UpdateRule, ...]
    privates: tuple[PrivateRule, ...]
    losses: tuple[LossRule, ...]
    deploy: str
    train: Train
    teachers: tuple[TeacherRule, ...] = ()
    average: AverageRule | None = None
    groups: tuple[GroupRule, ...] = ()
    penalties: tuple[PenaltyRule, ...] = ()
    expect: tuple[ExpectRule, ...] = ()
    overrides: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # of --set
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)
    given: str = field(default="", compare=False, repr=False)  # the text as it was given
    text: str = field(default="", compare=False, repr=False)  # after extends, let and --set
    parent: str = field(default="", compare=False, repr=False)  # the same of what it extends
    mix_span: Span | None = field(default=None, compare=False, repr=False)
    train_span: Span | None = field(default=None, compare=False, repr=False)
    balance_span: Span | None = field(default=None, compare=False, repr=False)
    rate_span: Span | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        rules = count(len(self.rules), "rule")
        paths = ", ".join(path.name for path in self.paths)
        return f"<Recipe {self.about.name or 'unnamed'}: {rules}, paths {paths}>"

    def _repr_html_(self) -> str:
        """The resolved text, for a notebook."""
        return preformatted(self.text or repr(self))
