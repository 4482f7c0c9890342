"""What goes around a step: clipping and penalties, a moving average, the words of `train`.

In:   a GradientStep, the plan.
Out:  the step that the loop calls.
Not:  no integrator (integrate.py); the words of extras bring their own wrappers.
"""

from __future__ import annotations

from torch import Tensor

from dcil_dsl.training.average import start_average, update_average
from dcil_dsl.training.integrate import IntegratedStep
from dcil_dsl.training.step import Batch, GradientStep, Step, Wrapper
from dcil_dsl.words.registry import extra


def wrap_step(step: GradientStep) -> Step:
    """The step with everything around it that its plan asks for, from the inside out."""
    wrapped: Step = step
    plan, train = step.dual.plan, step.dual.plan.train
    if train.integrator is not None:
        wrapped = IntegratedStep(wrapped, train.integrator)
    if train.clip is not None or any(group.penalties for group in plan.groups):
        wrapped = RegularizedStep(wrapped)
    if train.ema is not None:
        wrapped = AveragedStep(wrapped, train.ema)
    if any(path.compute == "kept" for path in plan.paths):
        wrapped = extra("sparse_compute.step").KeptStep(wrapped)
    for word in (train.balance, train.average):
        if word is not None:
            wrapped = word.wrap(wrapped)
    return wrapped


class RegularizedStep(Wrapper):
    """Clips the gradient of a step, then adds the penalties to it, as weight decay is added."""

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        result, plain = self.inner.gradients(batch), self.plain
        if batch.is_last:
            plain.unscale()
            if plain.dual.plan.train.clip is not None:
                plain.clip(plain.dual.plan.train.clip)
            plain.dual.add_penalties(batch.step)
        return result


class AveragedStep(Wrapper):
    """Keeps an exponential moving average of the weights, `ema = decay`."""

    def __init__(self, inner: Step, decay: float):
        super().__init__(inner)
        dual, self.decay = self.plain.dual, decay
        scores = {f"{name}_score" for name in dual.score_state}
        self.average = start_average(dual, decay, besides=scores)

    def apply(self, rate: float) -> None:
        self.inner.apply(rate)
        update_average(self.average, self.decay)
