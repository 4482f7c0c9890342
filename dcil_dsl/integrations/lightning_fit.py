"""What Lightning's Trainer says of a fit: its length, its loss scale, its callbacks.

In:   a Trainer, once its data and its optimizers are known.
Out:  numbers; InputError for what a recipe cannot be trained with, by name.
Not:  nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    XLAStrategy,
)
from torch import Tensor

from dcil_dsl.diagnostics import InputError

AVERAGES = "it averages a copy of the module without masks; `dcil.train` has `ema`"
STEPS_FIRST = "it trains steps before the fit; run it without DcilCallback"
REFUSED = {  # callbacks, by the names of their classes, subclasses included
    "WeightAveraging": AVERAGES,
    "StochasticWeightAveraging": AVERAGES,
    "ModelPruning": "the recipe says what is pruned",
    "LearningRateFinder": STEPS_FIRST,
    "BatchSizeFinder": STEPS_FIRST,
}


def length_of(trainer: Trainer) -> tuple[int, int]:
    """The steps of an epoch, and the number of epochs. InputError where neither is known."""
    total, max_epochs = trainer.estimated_stepping_batches, trainer.max_epochs
    if total in (-1, float("inf")):
        raise InputError(
            "the length of this fit is not known",
            help="set max_epochs, and data with a length, or max_steps",
        )
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if batches == float("inf"):
        return max(int(total), 1), 1
    steps = max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
    if trainer.max_steps != -1:
        longest = math.ceil(trainer.max_steps / steps)
        if max_epochs is None or max_epochs < 0 or longest < max_epochs:
            return steps, max(longest, 1)
    assert max_epochs is not None  # the total is known
    return steps, max(max_epochs, 1)


def loss_scale(trainer: Trainer) -> Tensor | None:
    """What Trainer multiplies a loss by before its backward pass; None: nothing."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=trainer.strategy.root_device))
    return scale


def refuse_callbacks(trainer: Trainer) -> None:
    """InputError for a callback that would leave other weights than the recipe's."""
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in REFUSED and kind.__module__.startswith(("lightning", "pytorch_li")):
                name = type(callback).__name__
                raise InputError(f"the callback {name} is not supported: {REFUSED[kind.__name__]}")
        if isinstance(callback, GradientAccumulationScheduler):
            if len(set(callback.scheduling.values())) > 1:
                raise InputError(
                    "GradientAccumulationScheduler changes the number of steps in an epoch",
                    help="Trainer(accumulate_grad_batches=k)",
                )


def refuse_strategy(trainer: Trainer) -> None:
    """InputError for a strategy that splits weights, or lets those of the processes differ."""
    strategy = trainer.strategy
    name = type(strategy).__name__
    is_other = isinstance(strategy, (DeepSpeedStrategy, XLAStrategy))  # DDPStrategies by class
    if is_other or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise InputError(
            f"the strategy {name} is not supported: masks are made of whole weights",
            help='Trainer(strategy="ddp") trains on several devices',
        )
    if getattr(strategy, "_model_averaging_period", None):
        raise InputError(
            f"the model_averaging_period of {name} is not supported: between two averages the "
            "processes would have other weights, and so other masks"
        )


def before_ddp(strategy: DDPStrategy, prepare: Callable[[], None]) -> None:
    """Call `prepare` once, right before the strategy wraps the module.

    A phase may leave a path out, so that the weights of that path have no gradient.
    """
    wrap = strategy.configure_ddp

    def configure_ddp() -> None:
        del vars(strategy)["configure_ddp"]
        prepare()
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        wrap()

    vars(strategy)["configure_ddp"] = configure_ddp


def num_optimizers(found: Any) -> int:
    """The number of optimizers in what configure_optimizers returned."""
    if not isinstance(found, (list, tuple)):
        return 1
    first = found[0] if found and isinstance(found[0], (list, tuple)) else found
    return len(first)
