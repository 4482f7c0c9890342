"""A structure of tensors with each tensor changed.

In:   tensors in lists, tuples, dictionaries and objects, however deep.
Out:  the same structure of new tensors; the one given is not changed.
Not:  modules and functions are no structures: they stay as they are.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

from torch import Tensor, nn

from dcil_dsl.masking.path_state import SIMPLE

ATOMS = (*SIMPLE, type, nn.Module, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def map_parts(change: Callable[[Tensor], Tensor], value, seen: dict | None = None):
    """`value` with `change` applied to every tensor in it."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, ATOMS):
        return value
    if isinstance(value, (tuple, list)):
        parts = [map_parts(change, part, seen) for part in value]
        if hasattr(value, "_make"):
            return value._make(parts)  # a named tuple
        if type(value) in (list, tuple) or isinstance(value, tuple):
            return type(value)(parts)
    if id(value) in seen:
        return seen[id(value)]
    if not isinstance(value, (dict, list)) and not getattr(value, "__dict__", None):
        return value
    seen[id(value)] = copied = copy.copy(value)
    if isinstance(value, dict):
        for key, part in value.items():
            copied[key] = map_parts(change, part, seen)
    elif isinstance(value, list):
        copied[:] = parts
    for name, part in getattr(value, "__dict__", {}).items():
        vars(copied)[name] = map_parts(change, part, seen)
    return copied
