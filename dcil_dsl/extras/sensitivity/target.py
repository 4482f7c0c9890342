"""The target `sensitivity(...)`: a budget divided by a measured profile.

In:   the layers of a rule: names, sizes, the fewest and the most weights that each may keep.
Out:  the share of each layer that is pruned at the end; Unfit if the profile does not fit.
Not:  how shares are chosen (least_loss.py), how a profile is read (profile.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.granularity import Single
from dcil_dsl.words.targets import Divided, Target, Unfit
from dcil_dsl.words.units import Percent, written

if TYPE_CHECKING:
    from dcil_dsl.extras.sensitivity.profile import Profile


class Sensitivity(Target):
    """`sensitivity(90%, profile="profile.json")`: most goes from the layers that a measured profile
    finds least sensitive.

    The layers of the rule lose this share together; `dcil sensitivity` writes the profile, whose
    path is relative to the recipe's.
    """

    divides: ClassVar[bool] = True
    how: ClassVar[str] = " by measured sensitivity"

    positional: ClassVar[int] = 1
    sparsity: Percent
    profile: Annotated[str, Field(min_length=1)]

    @property
    def allocation(self) -> str:
        return "sensitivity"

    def shares(self, of: Divided) -> tuple[float, ...]:
        """The shares with the least summed loss increase; () if floors or ceilings rule out the
        target, which is E304."""
        from dcil_dsl.extras.sensitivity.least_loss import Infeasible, least_loss
        from dcil_dsl.extras.sensitivity.profile import ProfileError, read_profile
        from dcil_dsl.plan.schedule import whole_units

        if not isinstance(of.unit, Single):
            raise Unfit(
                f"a profile measures single weights, and this rule prunes {of.unit.together}"
            )
        path = of.folder / self.profile
        try:
            profile = read_profile(path)
        except ProfileError as error:
            raise Unfit(
                f"cannot read the profile `{self.profile}`: {error}",
                label=f"looked for {path}",
                help="`dcil sensitivity RECIPE --model SPEC --train DATA --json FILE` writes one",
            ) from None
        if misfits := _misfits(profile, of):
            more = f"; {len(misfits)} layers do not fit the profile" if len(misfits) > 1 else ""
            raise Unfit(misfits[0] + more, help="measure this model, or `keep` the layer")
        curves = [profile.curve(name) for name in of.parameters]
        total = sum(of.sizes)
        num_keep = whole_units(total * (1 - self.sparsity.fraction))
        try:
            keeps = least_loss(of.sizes, curves, num_keep, of.floors, of.ceilings)
        except Infeasible as error:
            if num_keep < sum(of.floors) or error.least > total - num_keep:
                return ()
            most = Percent(int(1000 * error.most / total) / 1000)
            raise Unfit(
                f"within its floors the profile reaches {written(most)}, "
                f"not {written(self.sparsity)}",
                label=f"measured up to {written(Percent(profile.levels[-1]))} of a layer",
                help="`dcil sensitivity --levels ...` measures higher sparsities",
            ) from None
        return tuple(1 - keep / size for keep, size in zip(keeps, of.sizes, strict=True))


def _misfits(profile: Profile, of: Divided) -> list[str]:
    """A sentence for each layer that the profile does not fit."""
    known = {layer.parameter: layer.num_weights for layer in profile.layers}
    return [
        f"the profile of {profile.model} does not contain `{name}`"
        if name not in known
        else f"the profile's `{name}` has {count(known[name], 'weight')}, the model's {size:,}"
        for name, size in zip(of.parameters, of.sizes, strict=True)
        if known.get(name) != size
    ]
