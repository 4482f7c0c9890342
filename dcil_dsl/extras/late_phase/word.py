"""The word `late_phase`: where it has a meaning, and its step."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.late_phase.settings import LateSettings

if TYPE_CHECKING:
    from dcil_dsl.training.step import Step


class LatePhase(LateSettings):
    """`late_phase(norms, copies=10, start=60% run)`: copies of a few weights, averaged at the end.

    layers     what a `layers` definition names: the modules whose parameters are copied
    noise      how far the copies start apart, as a share of a weight's root mean square
    gradients  whether all other weights learn from the sum or the mean of a round of copies
    step.py has the rule. Von Oswald et al. 2021, arXiv:2007.12927.
    """

    word: ClassVar[str] = "late_phase"
    positional: ClassVar[int] = 1

    def wrap(self, step: Step) -> Step:
        from dcil_dsl.extras.late_phase.step import LatePhaseStep

        return LatePhaseStep(step)

    def fault(
        self, chosen: Collection[str], pruned: Collection[str], num_parameters: int, num_steps: int
    ) -> tuple[str, str | None] | None:
        num_left = num_steps - self.start.step
        both = next((name for name in chosen if name in pruned), None)
        if not chosen:
            return f"the layers of `{self.layers}` have no weights to copy", None
        if both is not None:
            return (
                f"`{both}` is pruned, and its copies would need masks of their own",
                "copy what no rule prunes, for example `layers norms = BatchNorm2d`",
            )
        if len(chosen) == num_parameters:
            return f"`{self.layers}` is all weights, so that none would be shared", None
        if num_left < self.copies:
            return (
                f"the late phase has {count(max(0, num_left), 'step')}, and a round of copies "
                f"takes {self.copies}",
                "begin earlier, `start=50% run`, or take fewer `copies`",
            )
        return None

    def summary(self) -> str:
        from dcil_dsl.plan.text import percent

        apart = f", {percent(self.noise)} apart" if self.noise else ""
        return (
            f"{self.copies} copies of {count(len(self.parameters), 'parameter')} from step "
            f"{self.start.step:,}{apart}, one a step in turn; all others move once in "
            f"{self.copies} steps, by the {self.gradients} of their gradients; the mean of the "
            "copies is evaluated and exported"
        )
