"""The loss that a plan asks for at a step.

In:   a Plan, the outputs of a dual graph {path: y}, the labels and the step.
Out:  each open term by its name, without its coefficient; their weighted sum.
Not:  nothing is routed here: which weight learns from which path is in the dual graph itself.

Classes stand in dimension 1 of logits, (B, C) or (B, C, H, W) or (B, C, D, H, W), but for those
of three dimensions, a language model's (B, T, C), where they stand last. Every mean is over the
batch and, where there are positions, over all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.plan.plan import KL, CrossEntropy, Loss, ModelLoss, OutsideLoss, Plan


def open_losses(plan: Plan, step: int) -> tuple[int, ...]:
    """The places in plan.losses of the terms whose window covers `step`."""
    return tuple(i for i, loss in enumerate(plan.losses) if loss.window.covers(step))


def loss_terms(
    plan: Plan, outputs: Mapping[str, object], target: Tensor | None, step: int
) -> dict[str, Tensor]:
    """The terms open at `step` by name: scalars, means over the batch, coefficients left out.

    outputs  {path: what the model returns on it}
    target   class numbers of the logits' shape without its classes: (B,), (B, T), (B, H, W); a
             position of -100 counts for nothing in cross entropy. Or shares of classes (B, K), as
             mixed examples have them, K at most C. None where no term needs it.

    Raises InputError where an output has no such logits or no loss of its own.
    """
    losses = [plan.losses[i] for i in open_losses(plan, step)]
    return {loss.name: loss_term(loss, outputs, target) for loss in losses}


def total_loss(
    plan: Plan, outputs: Mapping[str, object], target: Tensor | None, step: int,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """sum over the open terms of coefficient * weight * term, a scalar to call backward on.

    weights  one for each of plan.losses, those of a `balance` (balance.py); without one all are 1
    """
    if plan.train.balance is not None and weights is None:
        raise InputError(
            "the recipe balances its losses, and their weights are not given",
            help="dcil_dsl.training.balance has them: start_weights, weigh_terms",
        )
    terms = loss_terms(plan, outputs, target, step)
    assert terms, f"no loss is open at step {step}; resolve lets no such plan pass"
    places = open_losses(plan, step)
    return sum(weighed(plan, i, terms[plan.losses[i].name], weights) for i in places)


def refuse_constant(loss: Tensor) -> None:
    """InputError for a loss from which no gradient flows back to any weight."""
    if not loss.requires_grad:
        raise InputError(
            "the loss depends on no weight that learns: the model's output is detached",
            help="leave `.detach()` and torch.no_grad() out of its forward, or unfreeze weights",
        )


def weighed(plan: Plan, i: int, term: Tensor, weights: Tensor | None) -> Tensor:
    """What the term of plan.losses[i] adds to the sum."""
    own = plan.losses[i].coefficient * term
    return own if weights is None else weights[i].to(own.dtype) * own


def class_weights(plan: Plan, device: torch.device | str) -> list[Tensor | None]:
    """By loss: what a distillation multiplies its teacher's shares by, (classes,) float64."""
    found = [getattr(loss.term, "class_weights", None) for loss in plan.losses]
    return [
        None if weights is None else torch.tensor(weights, dtype=torch.float64, device=device)
        for weights in found
    ]


def loss_term(
    loss: Loss, outputs: Mapping[str, object], target: Tensor | None,
    classes: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One term, in float32 or wider whatever the outputs are in.

    classes  its own of class_weights, where they lie on the device already
    """
    term = loss.term
    try:
        match term:
            case CrossEntropy():
                if target is None:
                    raise InputError("it needs a target", help="dcil.loss(plan, outputs, target)")
                logits = classes_second(_wide(logits_of(outputs[term.path], term.output)))
                if term.batch < 1:
                    target = target[: len(logits)]
                target = _shares(target, logits)
                _fits(logits, target)
                return F.cross_entropy(logits, target, label_smoothing=term.smoothing)
            case KL():
                student, teacher = (
                    _wide(logits_of(outputs[path], term.output))
                    for path in (term.student, term.teacher)
                )
                if term.batch < 1:  # the first examples, which both have seen
                    rows = min(len(student), len(teacher))
                    student, teacher = student[:rows], teacher[:rows]
                if classes is None and term.class_weights is not None:
                    classes = student.new_tensor(term.class_weights)
                if term.beta is not None:
                    _knows_classes(classes, student)
                return kl(student, teacher, term.temperature, classes)
            case OutsideLoss(outside=outside, output=output):
                logits = {
                    path: classes_second(_wide(logits_of(outputs[path], output)))
                    for path in term.paths
                }
                if term.batch < 1:  # the first examples, which all have seen
                    rows = min(map(len, logits.values()))
                    logits = {path: own[:rows] for path, own in logits.items()}
                    target = None if target is None else target[:rows]
                return _number(outside.load().loss(logits, target))
            case ModelLoss():
                return _wide(own_loss(outputs[term.path]))
    except InputError as error:
        raise InputError(f"`{loss.name}`: {error.message}", help=error.help) from None


def kl(
    student: Tensor, teacher: Tensor, temperature: float, classes: Tensor | None = None
) -> Tensor:
    """T^2 * mean over batch and positions of KL(q || softmax(student / T)).

        q = softmax(teacher / T),   with `classes` w:   q_c <- w_c q_c / sum_k(w_k q_k)

    Only the student learns. T^2 keeps the size of the gradient independent of T (Hinton et al.
    2015, section 2.1). DCIL (arXiv:2109.04660) uses T = 2, in both directions; the authors' code
    adds 1e-7 to the teacher's softmax, which the logarithm of a softmax makes needless. The
    weighted q is FOSTER's (Wang et al. 2022, arXiv:2204.04662), whose loss is the cross entropy
    with it, without T^2: the same gradient, over T^2.
    """
    log_student = F.log_softmax(classes_second(student) / temperature, dim=1)
    log_teacher = F.log_softmax(classes_second(teacher).detach() / temperature, dim=1)
    if classes is not None:
        log_weights = classes.log().to(log_teacher.dtype)
        log_weights = log_weights.reshape(-1, *[1] * (log_teacher.dim() - 2))
        log_teacher = F.log_softmax(log_teacher + log_weights, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(dim=1).mean()


def _knows_classes(classes: Tensor | None, logits: Tensor) -> None:
    if classes is None:
        raise InputError(
            "it weighs classes by how often they occur, and the plan was made without the data",
            help="dcil.resolve(..., class_counts=[...]) takes the training examples of each class",
        )
    if len(classes) != classes_second(logits).shape[1]:
        own = count(classes_second(logits).shape[1], "class", "classes")
        raise InputError(f"the logits have {own}, the data {len(classes)}")


def classes_second(logits: Tensor) -> Tensor:
    """(B, T, C) as (B, C, T); logits of any other number of dimensions as they are."""
    return logits.movedim(2, 1) if logits.dim() == 3 else logits


def logits_of(output: object, name: str | None = None) -> Tensor:
    """The logits in what a model returns.

    name  the key or the field of them, or "0", "1" ... for a place in a tuple. None: the output
          itself where it is a tensor, or its field `logits`, as Inception and GoogLeNet have it
          in training mode beside their auxiliary outputs, and transformers' models in both modes.
    """
    if name is None and isinstance(output, Tensor):
        return output
    logits = _part(output, name or "logits")
    if isinstance(logits, Tensor) and logits.dim() > 1:
        return logits
    kind = type(output).__name__
    if name is None:
        raise InputError(
            f"the model returns a {kind}, in which no logits are found",
            help="return a tensor of shape (batch, classes), or something with a field `logits`; "
            'a term may also name its output, `output="out"`',
        )
    if isinstance(logits, Tensor):
        shape = " x ".join(map(str, logits.shape)) or "a single number"
        raise InputError(f"the output `{name}` of the model is {shape}, no logits")
    known = _names(output)
    near = nearest(name, known)
    has = f"it has {', '.join(known)}" if known else None
    fact = f"the model returns a {kind}, in which there is no tensor `{name}`"
    raise InputError(fact, help=f"did you mean `{near}`?" if near else has)


def own_loss(output: object) -> Tensor:
    """The loss in what a model returns, a scalar.

    A number by itself; the field or key `loss`, as transformers' models give it where they are
    given labels; or the sum of a dictionary of losses, as torchvision's detection models return
    it in training mode. InputError where there is none of these.
    """
    if isinstance(output, Tensor):
        if output.numel() == 1 and output.is_floating_point():
            return output.reshape(())
        shape = " x ".join(map(str, output.shape))
        raise InputError(
            f"the model returns a tensor of {shape}, not a loss of its own",
            help="`loss cross_entropy(...)` compares such an output with a target",
        )
    loss = _part(output, "loss")
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            shape = " x ".join(map(str, loss.shape))
            raise InputError(f"the model's own loss is a tensor of {shape}, not a number")
        return loss.reshape(())
    losses = list(output.values()) if isinstance(output, Mapping) else []
    if losses and all(isinstance(x, Tensor) and x.dim() == 0 for x in losses):
        return sum(losses)
    raise InputError(
        f"the model returns a {type(output).__name__} without a loss of its own",
        help="give it its labels; a detection model has losses in training mode alone",
    )


def _number(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    shape = " x ".join(map(str, loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__
    raise InputError(f"a loss is a tensor of one number, and this is {shape}")


def _part(output: object, name: str) -> object:
    if isinstance(output, Mapping):
        return output.get(name)
    if isinstance(output, (tuple, list)) and name.isdecimal() and int(name) < len(output):
        return output[int(name)]
    return getattr(output, name, None)


def _names(output: object) -> list[str]:
    """What a term may name in an output."""
    if isinstance(output, Mapping):
        return [key for key, value in output.items() if isinstance(value, Tensor)]
    if isinstance(output, (tuple, list)):
        fields = list(getattr(output, "_fields", ()))
        return fields + [str(place) for place in range(len(output))]
    fields = getattr(output, "__dict__", {}).items()
    return [key for key, value in fields if isinstance(value, Tensor)]


def _shares(target: Tensor, logits: Tensor) -> Tensor:
    """Shares of classes as the logits have them: the data need not have all of a model's classes.

    Class numbers as they are.
    """
    if target.is_floating_point() and target.dim() == 2 == logits.dim():
        return F.pad(target.to(logits.dtype), (0, max(0, logits.shape[1] - target.shape[1])))
    return target


def _fits(logits: Tensor, target: Tensor) -> None:
    """Class numbers have the logits' shape without its classes; class probabilities all of it."""
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) not in (wanted, tuple(logits.shape)):
        ours, theirs = (" x ".join(map(str, shape)) for shape in (wanted, target.shape))
        raise InputError(f"the target is {theirs or 'a single number'}, the logits ask for {ours}")


def _wide(values: Tensor) -> Tensor:
    if not values.is_floating_point() or values.layout != torch.strided:
        kind = str(values.dtype).removeprefix("torch.")
        kind += "" if values.layout == torch.strided else ", in a sparse layout"
        raise InputError(
            f"the model returns {kind}: a loss is of real numbers, in a dense tensor",
            help="return the logits themselves; what is derived from them belongs behind the model",
        )
    # Autocast leaves the logits in 16 bits, where a softmax over 1000 classes is rough.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
