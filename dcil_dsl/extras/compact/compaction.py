"""Remove dead filters, channels and heads from a network.

In:   a model with exact zeros, and the inputs of one call.
Out:  Compacted: a smaller network of the same function, proved by running both; the way back.
Not:  the origin of the zeros does not matter. Rows that cannot leave stay, with the reason.

    zeros ==> dependencies, constants ==> what may go ==> fold ==> cut ==> run both, compare
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.constants import find_constants
from dcil_dsl.extras.compact.cut import Followed, follow, kept_indices, make_small
from dcil_dsl.extras.compact.dead_channels import Stay, find_removal, find_stays, fix_sums, readings
from dcil_dsl.extras.compact.files import (
    Input,
    Kept,
    Shapes,
    TensorMap,
    expand_tensors,
    gather,
    put,
)
from dcil_dsl.extras.compact.fold_constants import constant_branches, fold_constants
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.digest import digest
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.side_effects import SIMPLE

TOLERANCE = 1e-5  # in float32, relative to 1 + the largest output
TOLERANCE_DOUBLE = 1e-10
TOLERANCE_HALF = 4  # steps of the type, where weights or outputs have fewer digits than float32


@dataclass(frozen=True)
class Compacted:
    """A network without its dead parts.

    model       in evaluation mode; of the original's class where its forward runs on smaller
                layers, else a GraphModule of its forward
    shapes      how its tensors lie in the original's
    tensors     under the original's keys, in their small shapes
    difference  the largest of |small - original| / (1 + max |original|) over num_inputs random
                inputs
    stays       rows of zeros that could not leave, with the reason
    """

    model: nn.Module
    shapes: Shapes
    tensors: dict[str, Tensor]
    difference: float
    num_inputs: int
    stays: tuple[Stay, ...]

    def expand(self) -> dict[str, Tensor]:
        """The small weights under the original's keys and shapes; they load strictly there."""
        return expand_tensors(self.shapes, self.tensors)


def compact(
    model: nn.Module,
    example_inputs: Inputs | tuple[Any, ...] | Mapping[str, Any] | Tensor,
    num_inputs: int = 8,
) -> Compacted:
    """Remove every filter, channel and head that the output does not depend on.

    model           with exact zeros, as `dcil.export(dual)` gives it; it is not changed
    example_inputs  a tuple of tensors, or a dict of them by name; later inputs may have another
                    batch size
    num_inputs      random inputs on which both networks must agree, the example among them

    InputError where the model cannot be traced, and where the two networks disagree by more than
    1e-5 in float32 (1e-10 in float64, 4 * eps in shorter types), relative to 1 + the largest
    output.
    """
    inputs = Inputs.of(example_inputs)
    entries = _entries(inputs)
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(f"`{name}` of the state dict is not a tensor: no file can hold it")
    original = copy_module(model)
    original.eval()
    followed, idle = _without_constant_branches(model, inputs.to(torch.device("cpu")))
    traced, found = followed.traced.model, followed.found
    values = find_constants(found)
    fix_sums(found, values)
    given = readings(found, values)
    removal = find_removal(found, given)
    stays = find_stays(found, given, removal)
    kept = kept_indices(found, removal.gone)
    folded = fold_constants(traced, given, removal.gone)
    put(traced, folded)
    maps, small = {}, {}
    for name, tensor in traced.state_dict().items():
        index: Kept = {0: []} if name in idle and tensor.dim() else kept.get(found.first[name], {})
        maps[name] = TensorMap.model_validate({"shape": tuple(tensor.shape), "kept": index})
        small[name] = gather(tensor, index)
    result, modules = make_small(followed, removal.gone)
    first = next(model.parameters(), None)
    if first is not None:
        result.to(first.device)
    difference = _compare(original, result, inputs, num_inputs)
    shapes = Shapes(
        model=type(model).__name__,
        inputs=entries,
        modules=modules,
        tensors=maps,
        opened=followed.opened,
        replaced=followed.replaced,
        digest=digest(small),
    )
    return Compacted(result, shapes, small, difference, num_inputs, stays)


@torch.no_grad()
def _without_constant_branches(model: nn.Module, inputs: Inputs) -> tuple[Followed, set[str]]:
    """The model followed, its constant branches replaced; the tensors that only they needed."""
    followed = follow(model, inputs)
    branches = constant_branches(followed.found, find_constants(followed.found))
    if not branches:
        return followed, set()
    before = followed.used
    followed = follow(model, inputs, followed.opened, tuple(branches))
    for path, constant in branches.items():
        followed.traced.model.get_parameter(f"{path}.bias").copy_(constant)
    first = followed.found.first  # a tied weight is idle under all of its names, or under none
    idle = {first[name] for name in before} - {first[name] for name in followed.used}
    return followed, {name for name in first if first[name] in idle}


def _entries(inputs: Inputs) -> tuple[Input, ...]:
    entries = []
    for name, value in [*((None, x) for x in inputs.args), *inputs.kwargs.items()]:
        if isinstance(value, Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            entries.append(Input(name=name, shape=tuple(value.shape), dtype=dtype))
        elif isinstance(value, SIMPLE):
            entries.append(Input(name=name, value=value))
        else:
            place = "an input" if name is None else f"`{name}`"
            raise InputError(
                f"{place} is of type {type(value).__name__}: to be made smaller a network takes "
                "tensors and plain values"
            )
    return tuple(entries)


def _compare(original: nn.Module, small: nn.Module, inputs: Inputs, count: int) -> float:
    """The largest difference over random inputs, relative to 1 + the largest output."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    numbers = [t.dtype for t in original.state_dict().values() if t.is_floating_point()]
    worst, bound = 0.0, max([TOLERANCE, *map(_coarse, numbers)])
    for index in range(count):
        drawn = inputs.map(draw) if index else inputs
        for expected, given in zip(_run(original, drawn), _run(small, drawn), strict=True):
            if expected.dtype == torch.float64:
                bound = TOLERANCE_DOUBLE
            if expected.is_floating_point():
                bound = max(bound, _coarse(expected.dtype))
            if expected.shape != given.shape:
                raise InputError(
                    f"the small network gives {list(given.shape)} instead of {list(expected.shape)}"
                )
            if expected.numel():
                expected, given = expected.double(), given.double()  # of masks and numbers too
                differs = expected != given  # of NaN always, of equal infinities never
                finite = expected[expected.isfinite()].abs()
                largest = 1 + (finite.max().item() if finite.numel() else 0.0)
                found = (given - expected)[differs].abs()
                apart = found.max().item() / largest if found.numel() else 0.0
                if isnan(apart):  # which no maximum would keep
                    raise InputError("the outputs of the network hold numbers that are not finite")
                worst = max(worst, apart)
    if not worst <= bound:
        raise InputError(
            f"the small network differs from the original by {worst:.1e}, more than {bound:.0e}",
            help="nothing was written; the model changes what it computes in a way that its graph "
            "does not show",
        )
    return worst


def _coarse(dtype: torch.dtype) -> float:
    """The tolerance for rounding in a type of few digits, 0 in float32 and float64."""
    eps = torch.finfo(dtype).eps
    return TOLERANCE_HALF * eps if eps > torch.finfo(torch.float32).eps else 0.0


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    copies = inputs.map(torch.clone)  # a forward may write into what it is given
    with torch.no_grad():
        output = model(*copies.args, **copies.kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
