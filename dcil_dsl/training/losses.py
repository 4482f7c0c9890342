"""The loss that a plan asks for at a step.

In:   a Plan, the outputs of a dual graph {path: y}, the labels and the step.
Out:  each open term by its name, without its coefficient; their weighted sum.
Not:  nothing is routed here: which weight learns from which path is in the dual graph itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import CrossEntropy, Loss, Plan


def open_losses(plan: Plan, step: int) -> tuple[int, ...]:
    """The places in plan.losses of the terms whose window covers `step`."""
    return tuple(i for i, loss in enumerate(plan.losses) if loss.window.covers(step))


def loss_terms(
    plan: Plan, outputs: Mapping[str, object], target: Tensor, step: int
) -> dict[str, Tensor]:
    """The terms open at `step` by name: scalars, means over the batch, coefficients left out.

    outputs {path: logits of shape (B, C)}, target class numbers of shape (B,).
    """
    losses = [plan.losses[i] for i in open_losses(plan, step)]
    return {loss.name: loss_term(loss, outputs, target) for loss in losses}


def total_loss(plan: Plan, outputs: Mapping[str, object], target: Tensor, step: int) -> Tensor:
    """sum over the open terms of coefficient * term, a scalar to call backward on."""
    terms = loss_terms(plan, outputs, target, step)
    assert terms, f"no loss is open at step {step}; resolve lets no such plan pass"
    return sum(loss.coefficient * terms[loss.name] for loss in plan.losses if loss.name in terms)


def loss_term(loss: Loss, outputs: Mapping[str, object], target: Tensor) -> Tensor:
    """One term, in float32 or wider whatever the outputs are in."""
    term = loss.term
    if isinstance(term, CrossEntropy):
        logits = _wide(logits_of(outputs[term.path]))
        return F.cross_entropy(logits, target, label_smoothing=term.smoothing)
    return kl(
        student=_wide(logits_of(outputs[term.student])),
        teacher=_wide(logits_of(outputs[term.teacher])),
        temperature=term.temperature,
    )


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * mean over the batch of KL(softmax(teacher / T) || softmax(student / T)).

    Only the student learns. T^2 keeps the size of the gradient independent of T (Hinton et al.
    2015, section 2.1). DCIL (arXiv:2109.04660) uses T = 2, in both directions; the authors' code
    adds 1e-7 to the teacher's softmax, which the logarithm of a softmax makes needless.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(dim=1).mean()


def logits_of(output: object) -> Tensor:
    """The logits in what a classifier returns: a tensor, or the field `logits` of it.

    Inception and GoogLeNet return such a tuple in training mode, with their auxiliary outputs,
    which no loss of the language names; transformers' models return it in both modes.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", logits)
    if isinstance(logits, Tensor):
        return logits
    raise InputError(
        f"the model returns a {type(output).__name__}, in which no logits are found",
        help="return a tensor of shape (batch, classes), or something with a field `logits`",
    )


def _wide(logits: Tensor) -> Tensor:
    # Autocast leaves the logits in 16 bits, where a softmax over 1000 classes is rough.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
