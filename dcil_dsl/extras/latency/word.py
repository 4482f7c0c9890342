"""The targets `speedup(...)` and `latency(...)`: as sparse as a measured speed needs.

In:   the layers of a rule, and a profile next to the recipe.
Out:  the target with its sparsity and where that was measured; Unfit if the profile does not fit.
Not:  nothing is measured here (job.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.granularity import Single
from dcil_dsl.words.targets import Divided, Target, Unfit
from dcil_dsl.words.units import Percent, written
from dcil_dsl.words.word import RESOLVED, Factor

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcil_dsl.extras.latency.profile import SpeedProfile

MEASURE = "`dcil bench RECIPE --model SPEC --json FILE` measures it"


class Timed(Target):
    """A uniform sparsity by a measured time. measured: on what, once resolved."""

    needs_layers: ClassVar[bool] = True
    measured: Annotated[str, RESOLVED] = ""
    sparsity: Annotated[Percent, RESOLVED] = Percent(0.0)

    if TYPE_CHECKING:

        @property
        def profile(self) -> str:
            """A setting of each: the file, relative to the recipe."""

    @property
    def allocation(self) -> str:
        return "measured"

    @abstractmethod
    def seconds(self, profile: SpeedProfile) -> float:
        """The longest time that reaches the target."""

    def told(self) -> str:
        return f", for {self.goal()} on {self.measured}"

    @abstractmethod
    def goal(self) -> str:
        """What is asked for, in the text of a plan."""

    def fitted(self, of: Divided) -> Self:
        from dcil_dsl.extras.latency.profile import SpeedError, read_speed

        if not isinstance(of.unit, Single):
            raise Unfit(f"single weights were timed, and this rule prunes {of.unit.together}")
        path = of.folder / self.profile
        try:
            profile = read_speed(path)
        except SpeedError as error:
            raise Unfit(
                f"cannot read the profile `{self.profile}`: {error}",
                label=f"looked for {path}",
                help=MEASURE,
            ) from None
        _check_layers(profile, of)
        wanted, curve = self.seconds(profile), profile.curve()
        sparsity = profile.sparsity_for(wanted)
        if sparsity is None:
            raise Unfit(
                f"{self.goal()} needs {_ms(wanted)}, and the profile reaches {_ms(curve[-1])}",
                label=f"at {written(Percent(profile.levels[-1]))} of the weights of these layers",
                help="ask for less, prune more layers, or measure higher sparsities (`--levels`)",
            )
        if sparsity == 0:
            raise Unfit(
                f"the network takes {_ms(curve[0])} with all weights, and {self.goal()} is "
                f"{_ms(wanted)}",
                label="nothing would be pruned",
            )
        found = {"sparsity": Percent(sparsity), "measured": profile.where}
        return self.model_copy(update=found)


class Speedup(Timed):
    """`speedup(2, profile="speed.json")`: each layer loses what makes the network twice as fast.

    In the sparse CPU kernels, against the fastest dense engine of the profile.
    """

    positional: ClassVar[int] = 1
    times: Factor
    profile: Annotated[str, Field(min_length=1)]

    def seconds(self, profile: SpeedProfile) -> float:
        return profile.fastest_dense / self.times

    def goal(self) -> str:
        return f"{self.times:g} times the speed of the dense network"


class Latency(Timed):
    """`latency(5, profile="speed.json")`: each layer loses what makes one run take 5 ms.

    In the sparse CPU kernels, with the batch size and the threads of the profile.
    """

    positional: ClassVar[int] = 1
    milliseconds: Factor
    profile: Annotated[str, Field(min_length=1)]

    def seconds(self, profile: SpeedProfile) -> float:
        return self.milliseconds / 1000

    def goal(self) -> str:
        return f"{self.milliseconds:g} ms"


def _check_layers(profile: SpeedProfile, of: Divided) -> None:
    """Unfit unless the rule prunes exactly the layers that were pruned together for the times."""
    asked = dict(zip(of.parameters, of.sizes, strict=True))
    odd = next((n for n, size in asked.items() if profile.layers.get(n) != size), None)
    if odd is not None:
        raise Unfit(f"the profile of {profile.model} does not have this `{odd}`", help=MEASURE)
    unused = next((name for name in profile.layers if name not in asked), None)
    if unused is not None:
        raise Unfit(
            f"the rule does not prune `{unused}`, which was pruned while the profile was measured",
            help="measure with this rule's layers",
        )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
