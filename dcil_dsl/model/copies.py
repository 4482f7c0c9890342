"""A deep copy of a module that holds computed tensors.

In:   a module.
Out:  a copy that shares nothing with it.
Not:  nothing is refused here but what Python cannot copy.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.masking.path_state import SIMPLE


def copy_module(module: nn.Module, memo: dict | None = None) -> nn.Module:
    """copy.deepcopy, which by itself refuses a tensor that autograd made.

    Forwards leave such tensors behind (a hidden state, the weight that torch.nn.utils.weight_norm
    computes before each call); the copy has their values, cut off from what made them.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters") or _holds_nothing(value):
                continue
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                    memo[id(leaf)] = leaf.detach().clone()
    copied = copy.deepcopy(module, memo)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            _complete(part, memo[id(part)], memo)
    return copied


def _complete(part: fx.GraphModule, copied: nn.Module, memo: dict) -> None:
    """The copy of a GraphModule with all that it holds: fx copies what its graph names, no more."""
    for path, module in part.named_modules(remove_duplicate=False):
        own = copied.get_submodule(path)
        for table in ("_modules", "_parameters", "_buffers"):
            for name, value in getattr(module, table).items():
                # fx makes the containers on the way to what is named anew.
                if getattr(own, table).get(name) is None and value is not None:
                    getattr(own, table)[name] = memo.get(id(value), value)
        own._non_persistent_buffers_set |= module._non_persistent_buffers_set
        own.training = module.training


def _holds_nothing(value: object) -> bool:
    """Most attributes of a module are settings, and tables that nothing is in."""
    return isinstance(value, SIMPLE) or (isinstance(value, (dict, set, list)) and not value)
