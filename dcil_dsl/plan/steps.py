"""The part of the Plan that says how a step is made: the optimizer, its rate, what wraps them.

In:   resolve.py fills it from a recipe's `train`.
Out:  training/ reads it.
Not:  which losses and paths a step has (plan.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from dcil_dsl.plan.group import Part
from dcil_dsl.words.averages import WeightAverage
from dcil_dsl.words.balances import Balance
from dcil_dsl.words.integrators import Integrator
from dcil_dsl.words.optimizers import Optimizer
from dcil_dsl.words.rates import Rate
from dcil_dsl.words.record import Stored


class Train(Part):
    """accumulate  batches for one step of the optimizer; the last of an epoch may have fewer
    sync_norms   batch norms take their statistics over all ranks
    """

    num_epochs: NonNegativeInt
    optimizer: Stored[Optimizer]
    rate: Stored[Rate]
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float | None = None
    ema: float | None = None
    accumulate: PositiveInt = 1
    sync_norms: bool = False
    average: Stored[WeightAverage] | None = None
    integrator: Stored[Integrator] | None = None
    balance: Stored[Balance] | None = None
    seed: int = 0
