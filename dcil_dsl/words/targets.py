"""How much a rule prunes, and how the layers share it.

In:   the settings of a rule.
Out:  one class for each word: what is pruned, and how its layers share it.
Not:  no counts of a layer (plan/allocate.py).
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.granularity import Granularity, Pattern, Single
from dcil_dsl.words.scores import L2, AnyScore
from dcil_dsl.words.units import Percent
from dcil_dsl.words.word import RESOLVED, Factor, LayersName, RunLength, Word

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class Unfit(Exception):
    """A target cannot divide its budget among these layers: E318, with `label` and `help`."""

    def __init__(self, message: str, label: str = "", help: str | None = None):
        self.message, self.label, self.help = message, label, help
        super().__init__(message)


class Divided(NamedTuple):
    """What a target divides its budget among: one entry per layer.

    floors    the fewest units that each layer keeps; ceilings: the most
    costs     what a unit of each layer costs the budget
    folder    what paths in the recipe are relative to
    """

    unit: Granularity
    parameters: tuple[str, ...]
    sizes: tuple[int, ...]
    floors: tuple[int, ...]
    ceilings: tuple[int, ...]
    folder: Path
    costs: tuple[int, ...] = ()


class Target(Word):
    """A target: the share that is pruned at the end, of each layer or of all together.

    one_budget  whether the layers compete for one budget
    divides     whether one budget is divided among the layers in advance (`targets` of a plan)
    how         how the budget is shared, for the text of a plan
    rescales    whether scores are compared after `rescaled`
    needs_layers  whether its sparsity follows from the layers of the rule, by `fitted`
    is_result  whether no share is asked for: what is pruned follows from the scores, by `limit`
    """

    place: ClassVar[str] = "a target"
    one_budget: ClassVar[bool] = False
    divides: ClassVar[bool] = False
    how: ClassVar[str] = ""
    rescales: ClassVar[bool] = False
    needs_layers: ClassVar[bool] = False
    is_result: ClassVar[bool] = False
    if TYPE_CHECKING:

        @property
        def sparsity(self) -> Percent:
            """A setting of each target, or what follows from its settings."""

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern that the target brings."""
        return None

    def told(self) -> str:
        """How its budget is shared, or where it comes from, for the text of a plan."""
        return self.how

    @property
    def limit(self) -> float:
        """The least score of what is kept, at the end, where the target `is_result`."""
        raise NotImplementedError

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

    def fitted(self, of: Divided) -> Self:
        """The target with its sparsity, where that follows from the layers. Raises Unfit."""
        return self

    def rescaled(self, scores: Tensor) -> Tensor:
        """The scores of one layer, or of its units, as they compare with those of other layers."""
        return scores

    def in_steps(self, run: RunLength) -> Self:
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


class DensityTarget(Target):
    """`density(10%)`: every layer of the rule keeps this share; 10% is `uniform(90%)`."""

    word: ClassVar[str] = "density"
    positional: ClassVar[int] = 1
    density: Percent
    granularity: Granularity | None = None

    @property
    def sparsity(self) -> Percent:
        return Percent(1 - self.density.fraction)


class Below(Target):
    """`below(0.01)`: whatever has a score below 0.01 is pruned; how much that is, is a result.

    With units larger than a weight, the mean score of a unit. A schedule raises the limit from 0.
    """

    word: ClassVar[str] = "below"
    positional: ClassVar[int] = 1
    is_result: ClassVar[bool] = True
    how: ClassVar[str] = ", by a threshold"
    threshold: Factor
    granularity: Granularity | None = None

    @property
    def sparsity(self) -> Percent:
        return Percent(0.0)  # nothing is asked for

    @property
    def limit(self) -> float:
        return self.threshold

    @property
    def allocation(self) -> str:
        return "threshold"


WEIGHT_BYTES = 4  # of a stored float32


class AtMost(Target):
    """`at_most(weights=100000)` or `at_most(bytes=400000)`: one threshold that leaves as many.

    bytes  of the values that are not zero, four each; their places are not counted
    """

    one_budget: ClassVar[bool] = True
    needs_layers: ClassVar[bool] = True
    how: ClassVar[str] = ", by a count"
    weights: Annotated[int, Field(ge=1)] | None = None
    bytes: Annotated[int, Field(ge=WEIGHT_BYTES)] | None = None
    sparsity: Annotated[Percent, RESOLVED] = Percent(0.0)

    def fitted(self, of: Divided) -> Self:
        if (self.weights is None) == (self.bytes is None):
            raise Unfit("`at_most` takes `weights` or `bytes`", help="`at_most(weights=100000)`")
        if not isinstance(of.unit, Single):
            raise Unfit(f"`at_most` counts single weights, and this rule prunes {of.unit.together}")
        keep, total = self.weights or (self.bytes or 0) // WEIGHT_BYTES, sum(of.sizes)
        if keep > total:
            raise Unfit(
                f"{count(total, 'weight')} are fewer than {keep:,}", label="nothing would be pruned"
            )
        return self.model_copy(update={"sparsity": Percent(1 - keep / total)})


class Listed(Target):
    """A share for each layer of the rule. given: the shares, once resolved."""

    divides: ClassVar[bool] = True
    needs_layers: ClassVar[bool] = True
    given: Annotated[tuple[Percent, ...], RESOLVED] = ()
    sparsity: Annotated[Percent, RESOLVED] = Percent(0.0)

    @abstractmethod
    def fitted(self, of: Divided) -> Self: ...

    def shares(self, of: Divided) -> tuple[float, ...]:
        return tuple(share.fraction for share in self.given)

    def with_shares(self, given: Sequence[Percent], of: Divided) -> Self:
        weighed = [size * cost for size, cost in zip(of.sizes, of.costs, strict=True)]
        pruned = math.fsum(x * share.fraction for x, share in zip(weighed, given, strict=True))
        overall = Percent(pruned / max(1, sum(weighed)))
        return self.model_copy(update={"given": tuple(given), "sparsity": overall})


class Each(Listed):
    """`each([50%, 80%, 90%])`: a sparsity for each layer of the rule, in the order of the model."""

    how: ClassVar[str] = " by a list"
    positional: ClassVar[int] = 1
    layers: Annotated[tuple[Percent, ...], Field(min_length=1)]

    @property
    def allocation(self) -> str:
        return "list"

    def fitted(self, of: Divided) -> Self:
        if len(self.layers) != len(of.parameters):
            raise Unfit(
                f"{count(len(self.layers), 'sparsity', 'sparsities')} for "
                f"{count(len(of.parameters), 'layer')}",
                label=f"the layers are {', '.join(of.parameters[:6])}"
                + (" ..." if len(of.parameters) > 6 else ""),
            )
        return self.with_shares(self.layers, of)


class Table(Listed):
    """`table("sparsity.json")`: a sparsity for each layer of the rule, from a file.

    file  JSON, `{"layer1.0.conv1": 0.9, ...}`, relative to the recipe; a name is that of a layer or
          of its weight
    """

    how: ClassVar[str] = " by a table"
    positional: ClassVar[int] = 1
    file: Annotated[str, Field(min_length=1)]

    @property
    def allocation(self) -> str:
        return "table"

    def fitted(self, of: Divided) -> Self:
        table = read_table(of.folder / self.file, self.file)
        names = {name: _name_in(table, name) for name in of.parameters}
        missing = [name for name, found in names.items() if found is None]
        unused = sorted(set(table) - set(names.values()))
        if missing:
            raise Unfit(f"the table `{self.file}` has no sparsity for `{missing[0]}`")
        if unused:
            raise Unfit(
                f"the rule prunes no layer `{unused[0]}`, which the table `{self.file}` has",
                help="a table has the layers of its rule, and no others",
            )
        return self.with_shares([Percent(table[name]) for name in names.values() if name], of)


def read_table(path: Path, name: str) -> dict[str, float]:
    """{layer: share} of a file. Unfit if it is no such file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(
            f"cannot read the table `{name}`: {error}", label=f"looked for {path}"
        ) from None
    if not isinstance(table, dict) or not table:
        raise Unfit(f"the table `{name}` is not an object of layers and sparsities")
    for layer, share in table.items():
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not is_number or not 0 <= share <= 1:
            raise Unfit(f"the table `{name}` says {share!r} of `{layer}`, not a number from 0 to 1")
    return table


def _name_in(table: dict[str, float], parameter: str) -> str | None:
    return next((n for n in (parameter, parameter.rpartition(".")[0]) if n in table), None)


class Within(Word):
    """`within(shortcuts, floor=30%)`: the least and the largest density of layers together."""

    place: ClassVar[str] = "a bound"
    word: ClassVar[str] = "within"
    positional: ClassVar[int] = 1
    layers: LayersName
    floor: Percent | None = None
    ceiling: Percent | None = None
