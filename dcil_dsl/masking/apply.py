"""A module's computation with other weights than its own.

In:   a module, a view for each of its parameters by name, the inputs.
Out:  what the module would compute if those were its parameters. The module is untouched.
Not:  no masks; which view it is, the graph decides.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def apply_layer(module: nn.Module, parameters: dict[str, Tensor], *args, **kwargs):
    """`module(*args, **kwargs)` reading `parameters` ({"weight": ..., "bias": ...}) instead.

    Layers whose forward is torch.nn's own are called directly; everything else goes through
    torch.func.functional_call, which costs some tens of microseconds a call: hooks run there,
    and a parametrised weight ("parametrizations.weight.original") is computed from its parts.
    """
    forward = type(module).forward
    if kwargs or _has_hooks(module) or not _has_own(parameters):
        return functional_call(module, parameters, args, kwargs)
    if forward in _CONVOLUTIONS:
        return module._conv_forward(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.Linear.forward:
        return F.linear(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.LayerNorm.forward:
        weight, bias = parameters["weight"], parameters.get("bias")
        return F.layer_norm(*args, module.normalized_shape, weight, bias, module.eps)
    return functional_call(module, parameters, args, kwargs)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _has_own(parameters: dict[str, Tensor]) -> bool:
    return "weight" in parameters and all(name in ("weight", "bias") for name in parameters)


_CONVOLUTIONS = frozenset({nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward})
