"""The small network again, from its two files and the original's builder; and the way back.

In:   a folder with shapes.json and small.safetensors; the original model with any weights.
Out:  the small network; or the small weights under the original's keys and shapes.
Not:  no code comes from the files, and every number in them is checked.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.cut import Followed, follow, kept_indices, make_small
from dcil_dsl.extras.compact.files import Shapes, expand_tensors, put, read_shapes
from dcil_dsl.jobs.example import MOST_NUMBERS, TYPES
from dcil_dsl.model.channels.dependencies import FIXED, Axis
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs


def load_compact(folder: str | Path, model: nn.Module) -> nn.Module:
    """The small network of `folder`, cut out of its original, on the device of `model`.

    model  the original, as its builder gives it; it is not changed

    InputError where the files are damaged, or belong to another model.
    """
    return rebuild_compact(*read_shapes(folder), model)


def expand(folder: str | Path) -> dict[str, Tensor]:
    """The weights of `folder` under the original's keys and shapes: they load strictly into it."""
    return expand_tensors(*read_shapes(folder))


def rebuild_compact(shapes: Shapes, small: dict[str, Tensor], model: nn.Module) -> nn.Module:
    """Cut a copy of `model` as the shapes say, with the small weights in it."""
    _compare_keys(shapes, model)
    _compare_types(small, model)
    _check_modules(shapes, model)
    inputs = _inputs(shapes)
    try_inputs(model, inputs, "the shape file")
    followed = follow(model, inputs, shapes.opened, shapes.replaced)
    put(followed.traced.model, expand_tensors(shapes, small))
    result, modules = make_small(followed, _gone(followed, shapes))
    if modules != shapes.modules:
        both = modules | shapes.modules
        path = next(p for p in both if modules.get(p) != shapes.modules.get(p))
        raise InputError(f"the sizes of `{path}` are not those that the index map leaves")
    try:
        with torch.no_grad():
            result(*inputs.args, **inputs.kwargs)
    except Exception as error:  # whatever a network of wrong sizes raises
        raise InputError(f"the index map does not leave a network that runs: {error}") from error
    first = next(model.parameters(), None)
    return result if first is None else result.to(first.device)


def _inputs(shapes: Shapes) -> Inputs:
    """Zeros of the shapes that the network was cut with."""
    zeros: list[tuple[str | None, Any]] = []
    for entry in shapes.inputs:
        if entry.dtype is None:
            zeros.append((entry.name, entry.value))
            continue
        dtype = getattr(torch, entry.dtype, None)
        if not isinstance(dtype, torch.dtype) or dtype not in TYPES:
            raise InputError(f"the shape file names a type of numbers `{entry.dtype}`")
        if prod(entry.shape) > MOST_NUMBERS:
            raise InputError(
                f"the shape file names an input of {' x '.join(map(str, entry.shape))} numbers"
            )
        zeros.append((entry.name, torch.zeros(entry.shape, dtype=dtype)))
    named = {name: value for name, value in zeros if name is not None}
    return Inputs(tuple(value for name, value in zeros if name is None), named)


@torch.no_grad()
def try_inputs(model: nn.Module, inputs: Inputs, source: str) -> None:
    """InputError where the model does not accept the inputs that a file names."""
    on = inputs.map(torch.clone)
    first = next(model.parameters(), None)
    try:
        copy = copy_module(model).eval()
        on = on if first is None else on.to(first.device)
        copy(*on.args, **on.kwargs)
    except Exception as error:  # a model may refuse an input with any error
        raise InputError(
            f"the model does not take the inputs that {source} names: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _compare_keys(shapes: Shapes, model: nn.Module) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(given.keys() | shapes.tensors.keys()):
        if name not in shapes.tensors:
            raise InputError(f"this is not the model of the shape file, which has no {name}")
        if name not in given:
            raise InputError(f"this is not the model of the shape file: it has no {name}")
        if given[name] != shapes.tensors[name].shape:
            fact = f"{list(given[name])} here and {list(shapes.tensors[name].shape)} there"
            raise InputError(f"this is not the model of the shape file: {name} is {fact}")


def _compare_types(small: dict[str, Tensor], model: nn.Module) -> None:
    """Numbers are converted among floating types and among no others, and are numbers."""
    for name, tensor in model.state_dict().items():
        own = small.get(name)
        if own is None:
            continue  # which expand_tensors tells
        if own.dtype not in TYPES or own.is_floating_point() != tensor.is_floating_point():
            types = f"{own.dtype}, in the model {tensor.dtype}".replace("torch.", "")
            raise InputError(f"{name} of the small network is {types}")
        if own.is_floating_point() and own.isnan().any():
            raise InputError(f"{name} of the small network holds NaN")


def _check_modules(shapes: Shapes, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for path in shapes.opened:
        if not isinstance(modules.get(path), nn.MultiheadAttention):
            raise InputError(
                f"this is not the model of the shape file: `{path}` is not an attention module"
            )
    for path in shapes.replaced:
        if getattr(modules.get(path), "bias", None) is None:
            raise InputError(f"this is not the model of the shape file: `{path}` has no bias")


def _gone(followed: Followed, shapes: Shapes) -> Tensor:
    """The channels that no index map keeps. InputError where the maps contradict each other."""
    found = followed.found
    gone = torch.zeros(found.num_channels, dtype=torch.bool)
    # A buffer that is not saved has no map; it goes with the channels of those that are.
    axes = [axis for axis in found.axes.values() if axis.key in shapes.tensors]
    for axis in axes:
        gone[_left_out(axis, shapes)] = True
    gone[FIXED] = False
    kept = kept_indices(found, gone)
    for axis in axes:
        if kept.get(axis.key, {}) != shapes.tensors[axis.key].lists():
            raise InputError(f"the index map of {axis.key} does not fit those of its neighbours")
    known, used = {axis.key for axis in axes}, followed.used
    for key, entry in shapes.tensors.items():
        if entry.kept and key in used and found.first[key] not in known:
            raise InputError(f"{key} cannot be cut as its index map says")
    return gone


def _left_out(axis: Axis, shapes: Shapes) -> Tensor:
    indices = shapes.tensors[axis.key].lists().get(axis.dim)
    if indices is None:
        return axis.channels[:0]
    out = torch.ones(axis.channels.shape, dtype=torch.bool)
    for row, stays in zip(torch.atleast_2d(out), indices if out.dim() == 2 else [indices]):
        row[torch.as_tensor(stays, dtype=torch.int64)] = False
    return axis.channels[out]
