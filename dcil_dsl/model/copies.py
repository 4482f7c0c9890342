"""Copy a model, and find what a deep copy would leave behind.

In:   a module, with its hooks and attributes.
Out:  a copy that shares nothing with it; the modules and tensors that its hooks use, and those
      that a copy would still share with the original.
Not:  no code runs: closures, defaults, globals and names of a function are read.

copy.deepcopy copies a bound method and a functools.partial with the objects they hold, but not a
function: the copy has the same function, whose closure, defaults and globals hold parts of the
original model.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.model.side_effects import SIMPLE

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OWN = (
    "_modules",
    "_parameters",
    "_buffers",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_flat_weight_refs",
)
CONTAINERS = (list, tuple, set, frozenset, dict)


def copy_module(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a module that holds tensors with a history, which deepcopy refuses.

    A forward may leave such tensors in a module: a hidden state, the weight that
    torch.nn.utils.weight_norm computes before each call. The copy has their values, detached.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters") or _holds_nothing(value):
                continue
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, torch.Tensor) and _has_history(leaf):
                    memo[id(leaf)] = leaf.detach().clone()
    copied = copy.deepcopy(module, memo)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            _complete(part, memo[id(part)], memo)
    return copied


def _has_history(tensor: torch.Tensor) -> bool:
    try:
        return tensor.grad_fn is not None
    except RuntimeError:  # a view of a weight that the optimizer has changed since: an LSTM's
        return True


def _complete(part: fx.GraphModule, copied: nn.Module, memo: dict[int, Any]) -> None:
    """Add to the copy of a GraphModule what fx does not copy: whatever its graph does not name."""
    for path, module in part.named_modules(remove_duplicate=False):
        own = copied.get_submodule(path)
        for table in ("_modules", "_parameters", "_buffers"):
            for name, value in getattr(module, table).items():
                # fx makes new containers on the way to a name.
                if getattr(own, table).get(name) is None and value is not None:
                    getattr(own, table)[name] = memo.get(id(value), value)
        own._non_persistent_buffers_set |= module._non_persistent_buffers_set
        own.training = module.training


def _holds_nothing(value: object) -> bool:
    """Whether an attribute holds no tensor for sure: most are settings or empty tables."""
    return isinstance(value, SIMPLE) or (isinstance(value, (dict, set, list)) and not value)


# -- what a copy leaves behind -------------------------------------------------------------------


class Held(NamedTuple):
    """A module or a tensor that a hook or an attribute holds.

    is_left  a deep copy of the holder still holds this very object
    names    the names in the code that holds it; None if no code does
    """

    value: nn.Module | Tensor
    is_left: bool
    names: frozenset[str] | None

    def is_used(self) -> bool:
        """Whether the holder may use its weights or mode, and not only settings of it."""
        if isinstance(self.value, Tensor) or self.names is None:
            return True
        both = {name for name in self.names if hasattr(Tensor, name) and hasattr(nn.Module, name)}
        named = {name for name in self.names - both if hasattr(self.value, name)}
        settings = {n for n, v in vars(self.value).items() if not callable(v)} - {"training"}
        return not named or not named <= settings  # no names: it is called or passed on


def left_behind(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(path of a module, its attribute, the part of the model that a copy of it still holds)."""
    names = {id(module): path or "the model" for path, module in model.named_modules()}
    names |= {id(tensor): name for name, tensor in model.named_parameters()}
    names |= {id(tensor): name for name, tensor in model.named_buffers()}
    seen: set[tuple[int, bool]] = set()
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in OWN or isinstance(value, SIMPLE):
                continue
            for held in _held(value, seen):
                if held.is_left and id(held.value) in names and held.is_used():
                    yield path, attribute, names[id(held.value)]


def used_by_hooks(module: nn.Module) -> list[nn.Module | Tensor]:
    """The modules and tensors that the hooks of a module and its submodules use."""
    hooks = [getattr(part, table) for part in module.modules() for table in HOOKS]
    seen: set[tuple[int, bool]] = set()
    return [held.value for table in hooks for held in _held(table, seen) if held.is_used()]


def _held(
    value: Any,
    seen: set[tuple[int, bool]],
    is_left: bool = False,
    names: frozenset[str] | None = None,
) -> Iterator[Held]:
    if isinstance(value, (*SIMPLE, type, types.ModuleType, types.BuiltinFunctionType)):
        return
    if isinstance(value, (nn.Module, Tensor)):
        yield Held(value, is_left, names)
        return
    if (id(value), is_left) in seen:
        return
    seen.add((id(value), is_left))
    if isinstance(value, CONTAINERS):
        parts = value.values() if isinstance(value, dict) else value
        for part in list(parts):
            yield from _held(part, seen, is_left, names)
    elif isinstance(value, types.FunctionType):
        if not (value.__module__ or "").startswith("torch."):
            yield from _held_by_function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _held(value.__func__, seen, is_left)
        yield from _held(value.__self__, seen, is_left, _names_of(value.__func__))
    elif isinstance(value, functools.partial):
        yield from _held(value.func, seen, is_left)
        inner = _names_of(value.func)
        yield from _held([*value.args, *value.keywords.values()], seen, is_left, inner)
    elif isinstance(value, weakref.ref):
        yield from _held(value(), seen, True, names)
    elif hasattr(value, "__dict__"):
        yield from _held(vars(value), seen, is_left, names)


def _held_by_function(function: types.FunctionType, seen: set[tuple[int, bool]]) -> Iterator[Held]:
    names = _names_of(function)
    for cell in function.__closure__ or ():
        try:
            yield from _held(cell.cell_contents, seen, True, names)
        except ValueError:  # not assigned yet
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    yield from _held(defaults, seen, True, names)
    for name in names or ():
        value = function.__globals__.get(name)
        if isinstance(value, (nn.Module, Tensor, *CONTAINERS)):
            yield from _held(value, seen, True, names)


def _names_of(function: Callable[..., Any]) -> frozenset[str] | None:
    """The names in the code of a function and of the functions within it."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return None
    names, waiting = set(), [code]
    while waiting:
        part = waiting.pop()
        names.update(part.co_names)
        waiting += [const for const in part.co_consts if isinstance(const, types.CodeType)]
    return frozenset(names)
