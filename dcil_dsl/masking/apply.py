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
    torch.func.functional_call, which costs some tens of microseconds a call.
    """
    forward = type(module).forward
    if forward in _CONVOLUTIONS and not kwargs:
        return module._conv_forward(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.Linear.forward and not kwargs:
        return F.linear(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.LayerNorm.forward and not kwargs:
        weight, bias = parameters.get("weight"), parameters.get("bias")
        return F.layer_norm(*args, module.normalized_shape, weight, bias, module.eps)
    return functional_call(module, parameters, args, kwargs)


_CONVOLUTIONS = frozenset({nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward})
