"""A deep copy of a module that holds computed tensors.

In:   a module.
Out:  a copy that shares nothing with it.
Not:  nothing is refused here but what Python cannot copy.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree

from dcil_dsl.masking.attributes import SIMPLE


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
    return copy.deepcopy(module, memo)


def _holds_nothing(value: object) -> bool:
    """Most attributes of a module are settings, and tables that nothing is in."""
    return isinstance(value, SIMPLE) or (isinstance(value, (dict, set, list)) and not value)
