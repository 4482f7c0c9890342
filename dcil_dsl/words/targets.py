"""How much a rule prunes, and how the layers share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dcil_dsl.words.granularity import Granularity
from dcil_dsl.words.units import Percent
from dcil_dsl.words.word import LayersName, Word


class Target(Word):
    """A target: the share that is pruned at the end, of each layer or of all together.

    one_budget  whether the layers compete for one budget
    """

    place: ClassVar[str] = "a target"
    one_budget: ClassVar[bool] = False
    if TYPE_CHECKING:

        @property
        def sparsity(self) -> Percent:
            """A setting of each target, or what follows from its settings."""


class Uniform(Target):
    """Every layer of the rule loses the same share: `90%` or `uniform(90%)`."""

    positional: ClassVar[int] = 1
    sparsity: Percent
    granularity: Granularity | None = None  # None: that of the rule or of `pruning`


class Global(Target):
    """One threshold over all layers of the rule: `global(90%)`.

    `of`: what the percentage is a share of. None: of the weights, or of the units where those
    are larger than one weight.
    """

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
    def sparsity(self) -> Percent:
        return Percent(1 - self.n / self.m)


class Erk(Target):
    """`erk(90%)`: the rule's layers lose 90% together, small ones less, large ones more.

    The density of a layer is eps * ((sum of its dimensions) / (product of them))^power, at most
    1; power 0 is uniform. Evci et al. 2020, arXiv:1911.11134, section 3.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent
    power: Annotated[float, Field(ge=0)] = 1.0


class Lamp(Target):
    """`lamp(90%)`: one threshold over w^2 / (sum of the squares in its layer that are no less).

    Lee et al. 2021, arXiv:2010.07611, section 2.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent


class Sensitivity(Target):
    """`sensitivity(90%, profile="profile.json")`: what was measured to be minded least goes.

    The layers of the rule lose so much together; `dcil sensitivity` writes the profile, whose
    path is relative to the recipe's.
    """

    positional: ClassVar[int] = 1
    sparsity: Percent
    profile: Annotated[str, Field(min_length=1)]


class Within(Word):
    """`within(shortcuts, floor=30%)`: the least and the largest density of layers together."""

    place: ClassVar[str] = "a bound"
    word: ClassVar[str] = "within"
    positional: ClassVar[int] = 1
    layers: LayersName
    floor: Percent | None = None
    ceiling: Percent | None = None
