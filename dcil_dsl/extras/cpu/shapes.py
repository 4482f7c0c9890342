"""Shapes of all values of a program, from the shapes of its inputs.

In:   a Program, its stored tensors, the shapes of one call.
Out:  the shape and type of every value; InputError where an operation does not fit.
Not:  no numbers are computed: everything runs on meta tensors, which have none.

The kernels get pointers, so every size that they read is checked here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.cpu.functions import INTEGERS, call, decode, function_of
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramCall, ProgramLayer, tensors_of
from dcil_dsl.extras.cpu.storage import StoredTensor

MOST_NUMBERS = 2**30  # of one value: 4 GiB in float32


def place_of(index: int, operation: ProgramLayer | ProgramCall) -> str:
    """An operation as an error names it."""
    if isinstance(operation, ProgramLayer):
        return f"operation {index} ({operation.op} `{operation.layer[:100]}`)"
    return f"operation {index} ({operation.function[:100]})"


def check_tensors(program: CpuProgram, stored: Mapping[str, StoredTensor]) -> None:
    """Every tensor that the program reads is in the file, and nothing else is."""
    needed = set(tensors_of(program))
    if missing := sorted(needed - stored.keys()):
        raise InputError(f"the program reads the tensor `{missing[0]}`, which is not in the file")
    if extra := sorted(stored.keys() - needed):
        raise InputError(f"the file holds the tensor `{extra[0]}`, which the program never reads")


def infer(
    program: CpuProgram, stored: Mapping[str, StoredTensor], inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Every value as a meta tensor, or as the integer that it is.

    inputs  the shape of each input of one call
    """
    values: dict[str, Any] = {}
    for given in program.inputs:
        shape = inputs[given.name]
        if prod(shape) > MOST_NUMBERS:
            raise InputError(f"the input `{given.name}` has {prod(shape):,} numbers: too many")
        values[given.name] = torch.empty(shape, dtype=getattr(torch, given.dtype), device="meta")
    tensors = {
        name: torch.empty(entry.shape, dtype=entry.values.dtype, device="meta")
        for name, entry in stored.items()
    }
    for name, tensor in program.constants.items():
        values[name] = tensors[tensor]
    with torch.no_grad():
        for index, operation in enumerate(program.operations):
            place = place_of(index, operation)
            if isinstance(operation, ProgramLayer):
                values[operation.output] = _layer(operation, values, tensors, place)
                _bound(values[operation.output], place)
            else:
                _call(operation, values, tensors, place)
    return values


def _call(
    operation: ProgramCall, values: dict[str, Any], tensors: Mapping[str, Tensor], place: str
) -> None:
    function = function_of(operation.function, place)
    args = decode(operation.args, values, tensors, place)
    kwargs = {key: decode(v, values, tensors, place) for key, v in operation.kwargs.items()}
    if operation.function not in INTEGERS and not _has_tensor([args, *kwargs.values()]):
        kwargs["device"] = torch.device("meta")  # a factory
    result = call(function, args, kwargs, place)
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(results) != len(operation.outputs):
        raise InputError(
            f"{place} gives {len(results)} results, and the program names {len(operation.outputs)}"
        )
    for name, value in zip(operation.outputs, results):
        if isinstance(value, Tensor):
            _bound(value, place)
        elif not isinstance(value, (int, type(None))):
            raise InputError(f"{place} gives a {type(value).__name__}")
        if name is not None:
            values[name] = value


def _has_tensor(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _bound(value: Tensor, place: str) -> None:
    if value.numel() > MOST_NUMBERS:
        raise InputError(f"{place} gives {value.numel():,} numbers: too many")
    if value.device.type != "meta":
        raise InputError(f"{place} gives a tensor of its own")


def _layer(
    layer: ProgramLayer, values: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str
) -> Tensor:
    """The output of a layer; InputError where its sizes contradict each other."""
    x, weight = values[layer.input], tensors[layer.weight]
    bias = None if layer.bias is None else tensors[layer.bias]
    add = None if layer.add is None else values[layer.add]
    for value in (x, add):
        if value is not None and not isinstance(value, Tensor):
            raise InputError(f"{place} reads a value that is not a tensor")
    ranks = 2 if layer.op == "linear" else 4
    if weight.dim() != ranks or (layer.op == "linear" and x.dim() < 1):
        raise InputError(f"{place} has a weight of shape {list(weight.shape)}")
    if layer.op == "conv2d" and x.dim() != 4:
        raise InputError(f"{place} reads a value of shape {list(x.shape)}, not a batch of images")
    inner = x.shape[-1] if layer.op == "linear" else x.shape[1]
    if inner != weight.shape[1] * layer.groups or weight.shape[0] % layer.groups:
        raise InputError(
            f"{place} has a weight of shape {list(weight.shape)} and reads {list(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise InputError(f"{place} has a bias of shape {list(bias.shape)}")
    if layer.op == "linear":
        shape = [*x.shape[:-1], weight.shape[0]]
    else:
        sides = []
        for dim in (0, 1):
            span = layer.dilation[dim] * (weight.shape[2 + dim] - 1) + 1
            room = x.shape[2 + dim] + 2 * layer.padding[dim] - span
            if weight.shape[2 + dim] < 1 or room < 0:
                raise InputError(f"{place} reads {list(x.shape)}: smaller than its kernel")
            sides.append(room // layer.stride[dim] + 1)
        shape = [x.shape[0], weight.shape[0], *sides]
    if not x.is_floating_point() or not weight.is_floating_point():
        raise InputError(f"{place} computes with {x.dtype}".replace("torch.", ""))
    if add is not None and (list(add.shape) != shape or add.dtype != x.dtype):
        raise InputError(f"{place} adds {list(add.shape)} to {shape}")
    if prod(shape) > MOST_NUMBERS:
        raise InputError(f"{place} gives {prod(shape):,} numbers: too many")
    return torch.empty(shape, dtype=x.dtype, device="meta")
