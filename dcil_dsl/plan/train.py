"""The `train` block in steps.

In:   the checked word, and what layers it named.
Out:  Train, a part of the Plan; E322 where an average of weights has no meaning for the model.
Not:  what a step does (training/).
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.select import Selection
from dcil_dsl.words.averages import WeightAverage
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.word import Run


def resolve_train(
    train: Train, average: WeightAverage | None, num_epochs: int, run: Run
) -> p.Train:
    """The part of the Plan. average: the word with its parameters."""
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


def resolve_average(
    average: r.Average | None,
    model: nn.Module,
    selection: Selection,
    groups: tuple[p.Group, ...],
    run: Run,
    report: Diagnostics,
) -> WeightAverage | None:
    """The average with its parameters by their names in the model, each once."""
    if average is None:
        return None
    word = average.word.in_steps(run)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = dict.fromkeys(
        names[id(parameter)]
        for layer in selection.select(average.selector)
        for parameter in layer.module.parameters()
    )
    pruned = {name for group in groups for name in group.parameters}
    fault = word.fault(chosen, pruned, len(names), run.num_steps)
    if fault is not None:
        report.add("E322", fault[0], average.span, help=fault[1])
    return word.model_copy(update={"parameters": tuple(chosen)})
