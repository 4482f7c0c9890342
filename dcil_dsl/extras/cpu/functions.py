"""The torch functions that a program may name, and their arguments as JSON.

In:   a torch function and its arguments; or the name and the JSON of a program.
Out:  the JSON; or the function and its arguments again.
Not:  a name that is not in the list below is refused, in an export and in a file.

Every function computes its results from its arguments alone: none draws random numbers, opens a
file, or changes an argument. Shapes are checked before any of them runs on numbers (shapes.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.cpu.program import DTYPES

MOST_INTEGER = 2**62
_WORDS = """
_softmax.default _log_softmax.default
_to_copy.default __and__.Tensor __and__.Scalar __or__.Tensor __xor__.Tensor
abs.default acos.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
adaptive_max_pool2d.default add.Scalar add.Tensor addmm.default alias.default all.default all.dim
amax.default amin.default any.default any.dim arange.default arange.start arange.start_step
argmax.default argmin.default atan.default atan2.default avg_pool1d.default avg_pool2d.default
avg_pool3d.default baddbmm.default batch_norm.default bitwise_and.Tensor bitwise_not.default
bitwise_or.Tensor bmm.default cat.default cdist.default ceil.default celu.default chunk.default
clamp.default clamp.Tensor clamp_max.default clamp_min.default clone.default
constant_pad_nd.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default
cos.default cumsum.default detach.default diagonal.default div.Scalar div.Tensor
div.Tensor_mode einsum.default elu.default embedding.default eq.Scalar eq.Tensor erf.default
exp.default expand.default expand_as.default expm1.default flatten.using_ints flip.default
floor.default floor_divide.default fmod.Scalar fmod.Tensor full.default full_like.default
gather.default ge.Scalar ge.Tensor gelu.default glu.default group_norm.default gt.Scalar gt.Tensor
hardsigmoid.default hardswish.default hardtanh.default index.Tensor index_select.default
instance_norm.default isinf.default isnan.default layer_norm.default le.Scalar le.Tensor
leaky_relu.default lift_fresh_copy.default linalg_vector_norm.default linear.default log.default
log1p.default log2.default log_softmax.int logical_and.default logical_not.default
logical_or.default logsumexp.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor
matmul.default max.default max.dim max_pool1d.default max_pool2d.default
max_pool3d.default maximum.default mean.default mean.dim
min.default min.dim minimum.default mish.default mm.default movedim.int mul.Scalar mul.Tensor
narrow.default ne.Scalar ne.Tensor neg.default

new_full.default new_ones.default new_zeros.default ones.default ones_like.default pad.default
permute.default pixel_shuffle.default pixel_unshuffle.default pow.Scalar pow.Tensor_Scalar
pow.Tensor_Tensor prelu.default prod.dim_int reciprocal.default reflection_pad1d.default
reflection_pad2d.default relu.default relu6.default remainder.Scalar remainder.Tensor
repeat.default repeat_interleave.self_int replication_pad2d.default reshape.default
rms_norm.default roll.default round.default rsqrt.default rsub.Scalar
scaled_dot_product_attention.default scalar_tensor.default select.int selu.default sigmoid.default
sign.default silu.default sin.default slice.Tensor softmax.int softplus.default sort.default
split.Tensor split_with_sizes.default sqrt.default squeeze.default squeeze.dim squeeze.dims
stack.default std.correction sub.Scalar sub.Tensor sum.default sum.dim_IntList t.default tan.default
tanh.default topk.default transpose.int tril.default triu.default unbind.int unflatten.int
unfold.default unsafe_chunk.default unsafe_split.Tensor unsqueeze.default
upsample_bicubic2d.default upsample_bicubic2d.vec upsample_bilinear2d.default
upsample_bilinear2d.vec upsample_nearest2d.default upsample_nearest2d.vec
var.correction var_mean.correction where.ScalarOther where.ScalarSelf where.self
zeros.default zeros_like.default
"""
ALLOWED = frozenset(f"aten.{word}" for word in _WORDS.split())


def _size(tensor: torch.Tensor, dim: int) -> int:
    return tensor.shape[dim]


# Arithmetic on sizes, which depend on the batch.
INTEGERS: dict[str, Callable[..., int]] = {
    "size": _size,
    "integer.add": operator.add,
    "integer.sub": operator.sub,
    "integer.mul": operator.mul,
    "integer.floordiv": operator.floordiv,
    "integer.mod": operator.mod,
    "integer.neg": operator.neg,
}
_OF_PYTHON = {
    operator.add: "integer.add",
    operator.sub: "integer.sub",
    operator.mul: "integer.mul",
    operator.floordiv: "integer.floordiv",
    operator.mod: "integer.mod",
    operator.neg: "integer.neg",
}
# A view depends on strides, which differ between kernels: a reshape copies where it has to.
_INSTEAD = {
    "aten.sym_size.int": "size",
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}
MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# Keywords of factories that say what a CPU export has anyway.
_DROPPED = ("device", "layout", "pin_memory", "non_blocking")


def name_of(target: object) -> str | None:
    """The name that a program has for a function of a graph; None where it has none."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        name = _INSTEAD.get(name, name)
        if name == "size":
            return name
        return name if name in ALLOWED else None
    try:
        return _OF_PYTHON.get(target)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # not hashable
        return None


def function_of(name: str, place: str) -> Callable[..., Any]:
    """The function that a program names. InputError for any that is not in the list."""
    if name in INTEGERS:
        return INTEGERS[name]
    if name not in ALLOWED:
        raise InputError(f"{place} names `{name[:100]}`, which is not in the list of functions")
    _, packet, overload = name.split(".")
    try:
        function: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError:
        raise InputError(
            f"{place} names `{name}`, which torch {torch.__version__} lacks",
            help="export again with this version of torch, or load with the version of the export",
        ) from None
    return function


class Inexpressible(Exception):
    """An argument that a program cannot express."""


def encode(value: object, names: Callable[[object], object]) -> Any:
    """An argument of a graph's call as JSON. `names` gives the form of a node, or None."""
    known = names(value)
    if known is not None:
        return known
    match value:
        case None | bool() | str():
            return value
        case int():
            if abs(value) > 2**63:
                raise Inexpressible(f"the number {value}")
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case list() | tuple():
            return [encode(part, names) for part in value]
        case torch.dtype():
            name = str(value).removeprefix("torch.")
            if name not in DTYPES:
                raise Inexpressible(f"the type {name}")
            return {"dtype": name}
        case torch.memory_format():
            name = str(value).removeprefix("torch.")
            if name not in MEMORY_FORMATS:
                raise Inexpressible(f"the memory format {name}")
            return {"memory_format": name}
    raise Inexpressible(f"an argument of type {type(value).__name__}")


def encode_keywords(
    kwargs: Mapping[str, object], names: Callable[[object], object]
) -> dict[str, Any]:
    """Keyword arguments as JSON, without those that only name the device."""
    return {key: encode(value, names) for key, value in kwargs.items() if key not in _DROPPED}


def decode(
    value: Any, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], place: str
) -> Any:
    """An argument from its JSON."""
    if isinstance(value, list):
        return [decode(part, values, tensors, place) for part in value]
    if not isinstance(value, dict):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63 - 1:
            raise InputError(f"{place} holds the number {str(value)[:40]}: too large")
        return value
    if len(value) == 1:
        (kind, name), *_ = value.items()
        if isinstance(name, str):
            match kind:
                case "value" if name in values:
                    return values[name]
                case "tensor" if name in tensors:
                    return tensors[name]
                case "dtype" if name in DTYPES:
                    return getattr(torch, name)
                case "memory_format" if name in MEMORY_FORMATS:
                    return MEMORY_FORMATS[name]
                case "float" if name in _FLOATS:
                    return _FLOATS[name]
    raise InputError(f"{place} has an argument that no function takes: {str(value)[:100]}")


def call(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], place: str) -> Any:
    """Run a function of the list. InputError where it refuses its arguments."""
    try:
        result = function(*args, **kwargs)
    except Exception as error:  # torch refuses arguments with errors of many types
        fact = "".join(c for c in " ".join(str(error).split()) if c.isprintable())[:200]
        raise InputError(f"{place} cannot run: {type(error).__name__}: {fact}") from None
    if isinstance(result, int) and abs(result) > MOST_INTEGER:
        raise InputError(f"{place} gives a number of more than 62 bits")
    return result
