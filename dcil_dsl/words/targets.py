"""How much a rule prunes, and how the layers share it.

In:   the settings of a rule.
Out:  one class for each word: what is pruned, and how its layers share it.
Not:  no counts of a layer (plan/allocate.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from dcil_dsl.words.granularity import Granularity, Pattern
from dcil_dsl.words.scores import L2, AnyScore
from dcil_dsl.words.units import Percent
from dcil_dsl.words.word import LayersName, Run, Word

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class Unfit(Exception):
    """A target cannot divide its budget among these layers: E318, with `label` and `help`."""

    def __init__(self, message: str, label: str = "", help: str | None = None):
        self.message, self.label, self.help = message, label, help
        super().__init__(message)


class Divided(NamedTuple):
    """What a target divides its budget among: one entry a layer.

    floors    the fewest units that each layer keeps; ceilings: the most
    folder    what paths in the recipe are relative to
    """

    unit: Granularity
    parameters: tuple[str, ...]
    sizes: tuple[int, ...]
    floors: tuple[int, ...]
    ceilings: tuple[int, ...]
    folder: Path


class Target(Word):
    """A target: the share that is pruned at the end, of each layer or of all together.

    one_budget  whether the layers compete for one budget
    divides     whether one budget is divided among the layers in advance (`targets` of a plan)
    how         how the budget is shared, for the text of a plan
    rescales    whether scores are compared after `rescaled`
    """

    place: ClassVar[str] = "a target"
    one_budget: ClassVar[bool] = False
    divides: ClassVar[bool] = False
    how: ClassVar[str] = ""
    rescales: ClassVar[bool] = False
    if TYPE_CHECKING:

        @property
        def sparsity(self) -> Percent:
            """A setting of each target, or what follows from its settings."""

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern that the target brings."""
        return None

    @property
    def allocation(self) -> str:
        """One word for how the budget is shared, in tables."""
        return "global" if self.one_budget else "uniform"

    def score_for(self, score: AnyScore) -> AnyScore:
        """The score that the target compares, in place of the rule's."""
        return score

    def proportions(self, shapes: Sequence[Sequence[Sequence[int]]]) -> tuple[float, ...] | None:
        """What the densities of members are proportional to, for the shapes of their weights, if
        the target divides its budget by shape."""
        return None

    def shares(self, of: Divided) -> tuple[float, ...] | None:
        """The share of each layer that is pruned at the end, if the target divides its budget by
        other facts than shapes. Raises Unfit."""
        return None

    def rescaled(self, scores: Tensor) -> Tensor:
        """The scores of one layer, or of its units, as they compare with those of other layers."""
        return scores

    def in_steps(self, run: Run) -> Self:
        # The plan has both next to the target, wherever the recipe said them.
        elsewhere = {"granularity", "of"} & set(self.settings())
        return super().in_steps(run).model_copy(update=dict.fromkeys(elsewhere))


class Uniform(Target):
    """`90%` or `uniform(90%)`: every layer of the rule loses the same share."""

    positional: ClassVar[int] = 1
    sparsity: Percent
    granularity: Granularity | None = None  # None: that of the rule or of `pruning`


class Global(Target):
    """`global(90%)`: one threshold over all layers of the rule.

    `of`: what the percentage is a share of. None: of the weights, or of the units where those
    are larger than one weight.
    """

    one_budget: ClassVar[bool] = True
    positional: ClassVar[int] = 1
    sparsity: Percent
    granularity: Granularity | None = None
    of: Literal["weights", "units", "flops"] | None = None


class NM(Target):
    """`2:4` or `nm(2, 4)`: of every m consecutive input channels n weights stay."""

    word: ClassVar[str] = "nm"
    positional: ClassVar[int] = 2
    n: Annotated[int, Field(ge=1)]
    m: Annotated[int, Field(ge=2)]

    @property
    def pattern(self) -> Pattern | None:
        return Pattern(n=self.n, m=self.m)

    @property
    def sparsity(self) -> Percent:
        return Percent(1 - self.n / self.m)


class Erk(Target):
    """`erk(90%)`: the rule's layers lose 90% together, small ones less, large ones more.

    The density of a layer is eps * ((sum of its dimensions) / (product of them))^power, at most
    1; power 0 is uniform. Evci et al. 2020, arXiv:1911.11134, section 3.
    """

    positional: ClassVar[int] = 1
    divides: ClassVar[bool] = True
    how: ClassVar[str] = " by ERK"
    sparsity: Percent
    power: Annotated[float, Field(ge=0)] = 1.0

    @property
    def allocation(self) -> str:
        return "ERK"

    def proportions(self, shapes: Sequence[Sequence[Sequence[int]]]) -> tuple[float, ...]:
        """
            ((sum of the dimensions) / (product of the dimensions))^power

        The kernel's dimensions count. `power` is `erk_power_scale` of the authors' code; 0 is
        uniform. Of several weights that are pruned as one, sums and products are added up.
        """
        shares = (sum(map(sum, own)) / sum(map(math.prod, own)) for own in shapes)
        return tuple(share**self.power for share in shares)


class Lamp(Target):
    """`lamp(90%)`: one threshold over w^2 / (sum of the squares in its layer that are no less).

    Lee et al. 2021, arXiv:2010.07611, eq. 1.
    """

    one_budget: ClassVar[bool] = True
    how: ClassVar[str] = ", scores by LAMP"
    rescales: ClassVar[bool] = True
    positional: ClassVar[int] = 1
    sparsity: Percent

    @property
    def allocation(self) -> str:
        return "LAMP"

    def score_for(self, score: AnyScore) -> AnyScore:
        return L2(average=score.decay)  # squares, whichever size of a weight the rule names

    def rescaled(self, scores: Tensor) -> Tensor:
        """Each square as a share of itself and all that come before it in its layer; float64.

            score(u) = w_u^2 / sum of w_v^2 over v from u on, when sorted by size upwards

        So each layer's largest has score 1, and comparing these over layers empties none. Of equal
        squares the earlier counts as the larger; zeros score 0.
        """
        import torch

        from dcil_dsl.words.tensors.numbers import running_sums

        flat = scores.flatten().double()
        order = flat.argsort(descending=True, stable=True)
        highest_first = flat[order]
        shares = highest_first / running_sums(highest_first)
        shares = torch.where(highest_first == 0, 0.0, shares)
        return torch.empty_like(flat).scatter_(0, order, shares).view(scores.shape)


class Within(Word):
    """`within(shortcuts, floor=30%)`: the least and the largest density of layers together."""

    place: ClassVar[str] = "a bound"
    word: ClassVar[str] = "within"
    positional: ClassVar[int] = 1
    layers: LayersName
    floor: Percent | None = None
    ceiling: Percent | None = None
