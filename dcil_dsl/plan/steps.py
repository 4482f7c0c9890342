"""The parts of the Plan that say how a step is made: the optimiser, its rate, what goes along.

In:   train.py fills them from a recipe's `train`.
Out:  training/ reads them. plan.py, whose Plan they are part of, gives them on.
Not:  which losses and paths a step has (plan.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, NonNegativeInt, PositiveInt

from dcil_dsl.extend.outside import Outside
from dcil_dsl.plan.group import Part


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


class Integrator(Part):
    """How a step's gradient is made of several; training/integrate.py has the formulas.

    players     "each": kept and pruned weights move in turns, the others standing still
    rate        how far extrapolation goes; None: the step's learning rate
    iterations  evaluations of an implicit step, or of a word that brings its effect
    """

    kind: Literal["heun", "rk4", "extrapolate", "implicit", "outside"]
    players: Literal["joint", "each"] = "joint"
    rate: float | None = None
    direction: Literal["previous", "fresh"] = "previous"
    iterations: int = 1
    outside: Outside | None = None

    @property
    def evaluations(self) -> int:
        """How many gradients it takes; of players that move in turns the first is one for both."""
        if self.kind == "extrapolate":
            return 2 if self.direction == "fresh" else 1
        stages = {"heun": 2, "rk4": 4}.get(self.kind, self.iterations)
        return stages if self.players == "joint" else 1 + 2 * (stages - 1)


class LatePhase(Part):
    """Copies of some parameters from a step on; training/late_phase.py has the rule.

    noise      how far they start apart, as a share of each parameter's root mean square
    gradients  what the other weights learn from once a round of copies
    """

    parameters: tuple[str, ...]
    copies: int
    start: int
    noise: float = 0.0
    gradients: Literal["sum", "mean"] = "sum"


class Balance(Part):
    """Losses weighed by their gradients every so many steps; training/balance.py has the formula.

    average  how much of the weights so far stays in the new ones
    """

    every: int
    average: float


class Train(Part):
    """accumulate  batches for one step of the optimiser, the last of an epoch may have fewer
    sync_norms   batch norms take their statistics over all ranks
    """

    num_epochs: NonNegativeInt
    optimizer: Annotated[Union[SGD, AdamW], Field(discriminator="kind")]
    rate: Rate
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float | None = None
    ema: float | None = None
    accumulate: PositiveInt = 1
    sync_norms: bool = False
    average: LatePhase | None = None
    integrator: Integrator | None = None
    balance: Balance | None = None
    seed: int = 0
