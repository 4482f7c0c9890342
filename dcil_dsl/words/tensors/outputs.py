"""What a model returns, read for a loss: logits, losses of its own, targets. Imports torch.

In:   what a model returns, targets.
Out:  logits, losses and targets, checked.
Not:  no loss is computed here (words/losses.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.words.tensors.widest import widest

IGNORED = -100  # the class number of a position that counts for nothing, as in torch's losses


def classes_second(logits: Tensor) -> Tensor:
    """(B, T, C) as (B, C, T); logits of any other number of dimensions as they are."""
    return logits.movedim(2, 1) if logits.dim() == 3 else logits


def logits_of(output: object, name: str | None = None) -> Tensor:
    """The logits in what a model returns.

    name  the key or the field of them, or "0", "1" ... for a place in a tuple. None: the output
          itself where it is a tensor, or its field `logits`, as Inception and GoogLeNet have it
          in training mode next to their auxiliary outputs, and transformers' models in both modes;
          or its key `out`, as torchvision's models for segmentation have it.
    """
    if name is None and isinstance(output, Tensor):
        return output
    logits = _part(output, name or "logits")
    if name is None and logits is None and isinstance(output, Mapping):
        logits = output.get("out")
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


def own_loss(output: object, name: str | None = None) -> Tensor:
    """The loss in what a model returns, a scalar.

    name  the key or the field of one of several losses

    A single number; the field or key `loss`, as transformers' models give it where they are
    given labels; or the sum of a dictionary of losses, as torchvision's detection models return
    it in training mode. InputError where there is none of these.
    """
    if name is not None:
        return _own_loss_named(output, name)
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
        return cast(Tensor, sum(losses))
    raise InputError(
        f"the model returns a {type(output).__name__} without a loss of its own",
        help="give it its labels; a detection model has losses in training mode alone",
    )


def _own_loss_named(output: object, name: str) -> Tensor:
    loss, known = _part(output, name), _names(output)
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.reshape(())
    near = nearest(name, known)
    has = f"the model returns {', '.join(known)}" if known else "the model returns no losses"
    raise InputError(
        f"the model computes no loss `{name}`", help=f"did you mean `{near}`?" if near else has
    )


def one_number(loss: object) -> Tensor:
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
    own = getattr(output, "__dict__", {}).items()
    return [key for key, value in own if isinstance(value, Tensor)]


def refuse_no_tensor(target: object) -> None:
    if not isinstance(target, Tensor):
        raise InputError(
            f"the target is of type {type(target).__name__}, and must be a tensor",
            help="`loss model(...)` is the loss that the model itself computes of such targets",
        )


def target_for(logits: Tensor, target: Tensor) -> Tensor:
    """Class numbers in the logits' shape without its classes, or class probabilities in all of it.

    Probabilities of fewer classes than the model has are filled up with zeros; numbers of any
    whole type become int64, as torch's cross entropy reads them. InputError for another shape.
    """
    if target.is_floating_point() and target.dim() == 2 == logits.dim():
        target = F.pad(target.to(logits.dtype), (0, max(0, logits.shape[1] - target.shape[1])))
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) not in (wanted, tuple(logits.shape)):
        ours, theirs = (" x ".join(map(str, shape)) for shape in (wanted, target.shape))
        raise InputError(f"the target is {theirs or 'a single number'}, the logits ask for {ours}")
    if target.is_floating_point() and target.dim() != logits.dim():
        kind = str(target.dtype).removeprefix("torch.")
        raise InputError(
            f"the target holds numbers of type {kind}, and class numbers are whole numbers",
            help="target.long(), where they are class numbers",
        )
    return target if target.is_floating_point() else target.long()


def numbers_for(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one shape: a last dimension of size 1 of the one that the other has not is left out.

    InputError for other shapes, which would be broadcast to a wrong number.
    """
    one, other = output, target
    if one.dim() == other.dim() + 1 and one.shape[-1] == 1:
        one = one.squeeze(-1)
    elif other.dim() == one.dim() + 1 and other.shape[-1] == 1:
        other = other.squeeze(-1)
    if one.shape != other.shape:
        ours, theirs = (
            " x ".join(map(str, t.shape)) or "a single number" for t in (output, target)
        )
        raise InputError(f"the targets are {theirs}, and the output of the model is {ours}")
    return one, other


def has_positions(target: object) -> bool:
    """Whether these are class numbers of the positions of texts or images: (B, T), (B, H, W)."""
    return isinstance(target, Tensor) and target.dim() > 1 and not target.is_floating_point()


def counted_positions(arguments: Mapping[str, object]) -> Tensor | None:
    """0 at the positions that a model's `attention_mask` lets in, -100 at those it leaves out, as
    targets have it for losses between paths. None without one, for one of real numbers, in which 0
    may let a position in, and next to arguments of a decoder: it is then of the encoder."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.is_floating_point():
        return None
    if any(name.startswith("decoder_") and given is not None for name, given in arguments.items()):
        return None
    return torch.where(mask != 0, 0, IGNORED)


def is_of_decoder(output: object) -> bool:
    """Whether an encoder came before: `attention_mask` is then of its positions, not of these."""
    return _part(output, "encoder_last_hidden_state") is not None


def positions_of(
    output: object, name: str | None, target: object, counted: Tensor | None
) -> Tensor | None:
    """What says which positions of an output count: the target, else `counted`; None: all do.

    output, name  as logits_of takes them
    target        as a loss takes it; one of another shape than the positions says nothing
    counted       as counted_positions has it
    """
    of_encoder = name is not None and name.startswith("encoder_")
    asked = [] if of_encoder else [target]  # a target is the decoder's
    if of_encoder or not is_of_decoder(output):
        asked.append(counted)
    logits = logits_of(output, name)
    places = tuple(classes_second(logits).shape[2:])
    for known in asked:
        if isinstance(known, Tensor) and has_positions(known):
            # Of one number for each position the shape is that of the positions: (B, T)
            if tuple(known.shape[1:]) in (places, tuple(logits.shape[1:])):
                return known
    if counted is not None and asked[-1] is counted and len(places) == counted.dim() - 1 == 1:
        _warn_of_padding(counted.shape[1], places[0])
    return None


def _warn_of_padding(num_masked: int, num_outputs: int) -> None:
    """An audio model has one output for many samples, another one places of a picture first."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"`attention_mask` has {num_masked:,} positions and the output {num_outputs:,}: "
            "padding counts in losses between paths; `counted` of dcil.loss and of Pruner.loss "
            "says which positions of the output count",
            RuntimeWarning,
            stacklevel=2,
        )


def mean_of_positions(values: Tensor, target: Tensor | None) -> Tensor:
    """The mean over the batch and those of its positions that have a target; over all, where no
    target of this shape says which. 0 where none has one.

    values (B,), (B, T), (B, H, W)
    """
    if target is None or not has_positions(target) or target.shape != values.shape:
        return values.mean()
    counts = target != IGNORED
    return values.where(counts, values.new_zeros(())).sum() / counts.sum().clamp(min=1)


def like_student(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's output. InputError if it has another shape: it would be broadcast."""
    if student.shape != teacher.shape:
        ours, theirs = (" x ".join(map(str, t.shape[1:])) for t in (student, teacher))
        raise InputError(
            f"the teacher returns {theirs or 'one number'} for an example, the student "
            f"{ours or 'one number'}"
        )
    return teacher


@cache
def on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """float64 (widest.py), copied to the device once: a copy in each step would wait for it."""
    return torch.tensor(numbers, dtype=widest(device), device=device)


def widen(values: Tensor) -> Tensor:
    if not values.is_floating_point() or values.layout != torch.strided:
        kind = str(values.dtype).removeprefix("torch.")
        kind += "" if values.layout == torch.strided else ", in a sparse layout"
        raise InputError(
            f"the model returns {kind}: a loss is of real numbers, in a dense tensor",
            help="return the logits themselves; what is derived from them belongs behind the model",
        )
    # Autocast leaves the logits in 16 bits, where a softmax over 1000 classes is rough.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
