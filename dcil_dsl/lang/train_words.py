"""The words of `train`: optimisers, rates, and how one step is made of its gradients.

In:   the arguments of a call, evaluated (values.py).
Out:  one class each; their tables stand in vocabulary.py.
Not:  what a word does: training/.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Field

from dcil_dsl.extend import kinds
from dcil_dsl.extend.word import Factor, FactorOrZero, LayersName, Word
from dcil_dsl.lang.values import Time


class SGD(Word):
    lr: Factor
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: FactorOrZero = 0.0


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Word):
    lr: Factor
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Factor = 1e-8
    weight_decay: FactorOrZero = 0.01


Optimizer = Union[SGD, AdamW]


class ConstantRate(Word):
    """`constant()`: the optimiser's lr throughout, after the warm-up."""

    warmup: Time | None = None
    warmup_from: FactorOrZero = 0.0  # a learning rate, not a share


class Multistep(Word):
    """`multistep(at=[150ep, 225ep], gamma=0.1)`: times gamma at each moment."""

    at: tuple[Time, ...]
    gamma: Factor = 0.1
    warmup: Time | None = None
    warmup_from: FactorOrZero = 0.0


class Cosine(Word):
    """`cosine()`: half a cosine from lr to `final` over what follows the warm-up."""

    warmup: Time | None = None
    warmup_from: FactorOrZero = 0.0
    final: FactorOrZero = 0.0


Rate = Union[ConstantRate, Multistep, Cosine]

# -- how one gradient is made of several: training/integrate.py has the formulas ----------------

Players = Literal["joint", "each"]


class Heun(Word):
    """`heun(players=joint)`: the mean of the gradients at both ends of a step.

    players  `each`: kept weights move while the pruned ones stand still, and the other way round.
    Qin et al. 2020, arXiv:2010.15040.
    """

    players: Players = "joint"


class RK4(Word):
    """`rk4(players=joint)`: the four gradients of Runge and Kutta. arXiv:2010.15040."""

    players: Players = "joint"


class Extrapolate(Word):
    """`extrapolate(rate=none, direction=previous)`: the gradient a little further on.

    rate       how far, times the direction; None: the step's learning rate
    direction  the gradient of the step before, or one taken `fresh`
    Lin et al. 2020, arXiv:2006.05720.
    """

    rate: Factor | None = None
    direction: Literal["previous", "fresh"] = "previous"


class Implicit(Word):
    """`implicit(iterations=3)`: the gradient where the step ends, by so many evaluations.

    Li et al. 2023, arXiv:2303.01767.
    """

    iterations: Annotated[int, Field(ge=2)] = 3


Integrator = Union[Heun, RK4, Extrapolate, Implicit, kinds.Integrator]

# -- how several weights become one, and several losses ------------------------------------------


class LatePhase(Word):
    """`late_phase(norms, copies=10, start=60% run)`: copies of a few weights, averaged at the end.

    layers     what a `layers` definition names: the modules whose parameters are copied
    noise      how far the copies start apart, as a share of a weight's root mean square
    gradients  whether all other weights learn from the sum or the mean of a round of copies
    training/late_phase.py has the rule. Von Oswald et al. 2021, arXiv:2007.12927.
    """

    positional: ClassVar[int] = 1
    layers: LayersName
    copies: Annotated[int, Field(ge=2)] = 10
    start: Time = Time(0.6, "run")
    noise: FactorOrZero = 0.0
    gradients: Literal["sum", "mean"] = "sum"


class InverseDirichlet(Word):
    """`inverse_dirichlet(every=5ep, average=0.5)`: terms of one path weigh by their gradients.

    every    how often the gradients of the terms are measured one by one
    average  how much of the weights so far stays in the new ones
    training/balance.py has the formula. Maddu et al. 2022, arXiv:2107.00940.
    """

    every: Time = Time(5, "epochs")
    average: Annotated[float, Field(ge=0, lt=1)] = 0.5


# -- the block -----------------------------------------------------------------------------------


class Train(Word):
    """The `train` block."""

    epochs: Time
    optimizer: Optimizer
    lr: Rate = ConstantRate()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: Factor | None = None  # largest norm of all gradients together
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the averaged weights
    average: LatePhase | None = None
    integrator: Integrator | None = None
    balance: InverseDirichlet | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1  # batches for one step of the optimiser
    sync_norms: bool = False  # batch norms take their statistics over all processes
    seed: Annotated[int, Field(ge=0)] = 0
