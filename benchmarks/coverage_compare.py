"""A step of ours against a step of two plain copies: how far apart, and what is rounding.

In:   a compiled model, the two copies (two_copies.py), the inputs, which losses, the mode.
Out:  the largest relative difference of outputs, loss, gradients and statistics.
Not:  no models and no table (coverage_one.py, coverage.py).

Differences are relative: the largest |ours - theirs| of a tensor over the largest |theirs| of it,
or over FLOOR times the largest of all gradients where that is more, so that the rounding of a
gradient that should be zero is not taken for an error.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from two_copies import TwoCopies

from dcil_dsl.model.inputs import Inputs
from dcil_dsl.training.losses import total_loss

RATE = 1e-3
BOUND = {"float64": 1e-9, "float32": 1e-4}
FLOOR = {"float64": 1e-6, "float32": 1e-3}
TOLD = 4.0  # times what two draws of last bits move is still rounding


def compare(
    dual, plan, reference: TwoCopies, inputs: Inputs, kind: str, mode: str, dtype: str
) -> tuple[dict[str, float], float]:
    """A step of both: how far apart, and the largest difference that rounding alone explains.

    The models return what Early makes of their outputs; its norm has a loss on either path.
    Outputs, the loss, every gradient, and then the statistics after the step, which both sides
    leave with our weights and statistics.
    """
    for module in (dual, reference.model, *reference.twins.values()):
        module.train(mode == "train")
    target = _target(inputs)
    ask = kind if mode == "train" or kind in ("classes", "own and logits") else "in python"

    def ours_of(outputs):
        early = _of_norms(outputs["sparse"], outputs["dense"])
        outputs = {path: output["output"] for path, output in outputs.items()}
        return early + main_loss(outputs)

    def main_loss(outputs):
        if ask == "in python":
            return _project(outputs["sparse"]) + _project(outputs["dense"])
        step_target = _segments(inputs) if ask == "segmentation" else target
        return total_loss(plan, outputs, step_target, 0)

    def theirs_of(sparse, dense):
        early = _of_norms(sparse, dense)
        return early + _plain_loss(ask, sparse["output"], dense["output"], inputs, target)

    def plain_step(copies: TwoCopies):
        seed(1)
        y_sparse, y_dense, loss, gradients = copies.step(
            lambda model: call(model, inputs), theirs_of
        )
        # Without the graphs of the outputs, which would keep both copies alive.
        values = [[t.detach() for t in floats(y)] for y in (y_sparse, y_dense)]
        return values, loss, gradients

    # Theirs first: both copies are gone before ours has gradients.
    theirs, their_loss, gradients = plain_step(reference)
    seed(1)
    outputs = call(dual, inputs)
    loss = ours_of(outputs)
    for parameter in dual.parameters():
        parameter.grad = None
    if loss.requires_grad:
        loss.backward()

    found = {"outputs": 0.0}
    for path, values in zip(("sparse", "dense"), theirs, strict=True):
        ours = floats(outputs[path])
        if [t.shape for t in ours] != [t.shape for t in values]:
            shapes = [[t.shape for t in side] for side in (ours, values)]
            raise AssertionError(f"other outputs: {shapes[0]}, {shapes[1]}")
        found["outputs"] = max([found["outputs"], *map(_apart, ours, values)])
    found["loss"] = _apart(loss.detach(), their_loss)
    named = dict(dual.named_parameters())
    if named.keys() != gradients.keys():
        raise AssertionError(f"other parameters: {sorted(named.keys() ^ gradients.keys())[:6]}")
    found["gradients"], rounding = _gradients_apart(named, gradients, reference, plain_step, dtype)
    _descend(named)
    buffers = dict(dual.named_buffers())
    for name, buffer in reference.buffers().items():
        found["buffers"] = max(found.get("buffers", 0.0), _apart(buffers[name], buffer))
    # An activation that is zero but for rounding would be on either side of it in the next step.
    reference.take(named | buffers)
    return found, rounding


def _gradients_apart(
    named: dict[str, nn.Parameter],
    gradients: dict[str, Tensor],
    reference: TwoCopies,
    plain_step: Callable[[TwoCopies], tuple],
    dtype: str,
) -> tuple[float, float]:
    """The largest difference of a gradient, and the largest that rounding explains.

    A bias before a batch norm has a gradient of zero, and what is computed for it is rounding
    alone. So where a difference is over the bound, the reference is held against itself with its
    weights moved in their last bits: what moves it as far is no difference of method.
    """
    largest = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)

    def apart(name: str, ours: Tensor | None) -> float:
        ours = torch.zeros_like(gradients[name]) if ours is None else ours
        return _apart(ours, gradients[name], FLOOR[dtype] * largest)

    far = {name: apart(name, parameter.grad) for name, parameter in named.items()}
    noise = dict.fromkeys(far, 0.0)
    if max(far.values()) > BOUND[dtype]:
        for draw in range(2):
            moved = plain_step(_moved(reference, draw))[2]
            noise = {name: max(noise[name], apart(name, moved[name])) for name in noise}
    explained = {name for name in far if BOUND[dtype] < far[name] <= TOLD * noise[name]}
    return (
        max((far[name] for name in far.keys() - explained), default=0.0),
        max((far[name] for name in explained), default=0.0),
    )


@torch.no_grad()
def _moved(reference: TwoCopies, draw: int) -> TwoCopies:
    """A copy whose weights are each one unit in the last place up, down, or where they were."""
    moved = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(draw)
    for parameter in moved.parameters().values():
        way = torch.randint(-1, 2, parameter.shape, generator=generator).to(parameter.dtype)
        parameter.mul_(1 + way * torch.finfo(parameter.dtype).eps)
    return moved


@torch.no_grad()
def _descend(named: dict[str, nn.Parameter]) -> None:
    for parameter in named.values():
        if parameter.grad is not None:
            parameter.sub_(RATE * parameter.grad)
            parameter.grad = None


def _of_norms(sparse: dict, dense: dict) -> Tensor:
    return 0.3 * sparse["early"] + 0.7 * dense["early"]


def _plain_loss(kind: str, sparse, dense, inputs: Inputs, target: Tensor) -> Tensor:
    """The losses of the recipe, by hand."""
    if kind == "in python":
        return _project(sparse) + _project(dense)
    loss = 0.0
    for output in (sparse, dense):
        if kind == "classes":
            loss = loss + F.cross_entropy(logits(output), target)
        elif kind == "segmentation":
            segments = _segments(inputs)
            loss = loss + F.cross_entropy(output["out"], segments)
            loss = loss + 0.5 * F.cross_entropy(output["aux"], segments)
        elif "loss" in output:
            loss = loss + output["loss"]
        else:
            loss = loss + sum(output.values())
    if kind == "own":
        return loss
    one, other = (y["out"] if kind == "segmentation" else logits(y) for y in (sparse, dense))
    axis = -1 if one.dim() == 3 else 1
    for student, teacher in ((one, other), (other, one)):
        p = (teacher.detach() / 2).softmax(axis)
        log_p, log_q = (teacher.detach() / 2).log_softmax(axis), (student / 2).log_softmax(axis)
        loss = loss + 4 * (p * (log_p - log_q)).sum(axis).mean()
    return loss


def _project(output: object) -> Tensor:
    """A number that every output has its part in: the mean product with fixed random numbers."""
    total = torch.zeros((), dtype=torch.float64)
    for place, leaf in enumerate(floats(output, learn=True)):
        fixed = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(place))
        total = total + (leaf.double() * fixed.double()).mean()
    return total


def _apart(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.detach(), theirs.detach()
    if torch.equal(ours, theirs):
        return 0.0
    if not theirs.is_floating_point():  # a counter, an index
        return float("inf")
    if not bool((ours.isfinite() == theirs.isfinite()).all()):
        return float("inf")
    difference = (ours - theirs).nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    scale = max(theirs.nan_to_num(0.0, 0.0, 0.0).abs().max().item(), floor, 1e-12)
    return difference / scale


def logits(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, dict) else None
    return getattr(output, "logits", found)


def floats(output: object, learn: bool = False) -> list[Tensor]:
    """The tensors of numbers in an output, whatever it is made of."""
    found: list[Tensor] = []

    def look(value):
        if isinstance(value, Tensor):
            if value.is_floating_point() and (value.requires_grad or not learn):
                found.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                look(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                look(part)

    look(output)
    return found


def _target(inputs: Inputs) -> Tensor:
    labels = inputs.kwargs.get("labels")
    if isinstance(labels, Tensor):
        return labels
    first = next(t for t in pytree.tree_leaves((inputs.args, inputs.kwargs)) if t is not None)
    return torch.arange(len(first)) % 10


def _segments(inputs: Inputs) -> Tensor:
    batch, _, height, width = inputs.args[0].shape
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 10, (batch, height, width), generator=generator)


def call(model: nn.Module, inputs: Inputs):
    """On copies: detection models change what they are given."""
    args, kwargs = copy.deepcopy((inputs.args, inputs.kwargs))
    return model(*args, **kwargs)


def seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
