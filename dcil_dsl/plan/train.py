"""The `train` block in steps.

In:   the checked word, and what layers it named.
Out:  Train, a part of the Plan.
Not:  what a step does (training/).
"""

from __future__ import annotations

from dcil_dsl.plan import plan as p
from dcil_dsl.words.averages import WeightAverage
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.word import Run


def resolve_train(
    train: Train, average: WeightAverage | None, num_epochs: int, run: Run
) -> p.Train:
    """The part of the Plan. average: the word with its parameters (late_phase.py)."""
    return p.Train(
        num_epochs=num_epochs,
        optimizer=train.optimizer.in_steps(run),
        rate=train.lr.in_steps(run),
        precision=train.precision,
        clip=train.clip,
        ema=train.ema,
        accumulate=train.accumulate,
        sync_norms=train.sync_norms,
        average=average,
        balance=train.balance and train.balance.in_steps(run),
        integrator=train.integrator and train.integrator.in_steps(run),
        seed=train.seed,
    )
