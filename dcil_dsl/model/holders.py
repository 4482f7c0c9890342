"""Which parts of a model its functions hold: hooks, and functions that are attributes.

In:   a module, with whatever was hung on it.
Out:  the modules and tensors that its hooks use; what a deep copy would leave behind.
Not:  nothing is run: a function is read by its closure, defaults, globals and names.

copy.deepcopy copies a bound method and a functools.partial with what they hold, but a function as
it is: its copy's closure, defaults and globals are those of the model that was copied.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from dcil_dsl.masking.path_state import SIMPLE

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


class Held(NamedTuple):
    """A module or a tensor. is_left: a deep copy of its holder would go on holding this very one.

    names  what the code that holds it names; None where no code does
    """

    value: nn.Module | Tensor
    is_left: bool
    names: frozenset[str] | None

    def is_used(self) -> bool:
        """Whether its weights or its mode may be: a module may hold settings, too."""
        if isinstance(self.value, Tensor) or self.names is None:
            return True
        both = {name for name in self.names if hasattr(Tensor, name) and hasattr(nn.Module, name)}
        named = {name for name in self.names - both if hasattr(self.value, name)}
        settings = {n for n, v in vars(self.value).items() if not callable(v)} - {"training"}
        return not named or not named <= settings  # none: it is called, or passed on


def left_behind(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(path of a module, its attribute, name of what that holds of the model) by a deep copy."""
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
    """What the hooks of a module, and of those in it, use."""
    hooks = [getattr(part, table) for part in module.modules() for table in HOOKS]
    seen: set[tuple[int, bool]] = set()
    return [held.value for table in hooks for held in _held(table, seen) if held.is_used()]


def _held(value, seen: set, is_left: bool = False, names: frozenset | None = None) -> Iterator:
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


def _held_by_function(function: types.FunctionType, seen: set) -> Iterator:
    names = _names_of(function)
    for cell in function.__closure__ or ():
        try:
            yield from _held(cell.cell_contents, seen, True, names)
        except ValueError:  # it is filled later
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    yield from _held(defaults, seen, True, names)
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, (nn.Module, Tensor, *CONTAINERS)):
            yield from _held(value, seen, True, names)


def _names_of(function) -> frozenset[str] | None:
    """What a function's code names, the functions within it included."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return None
    names, waiting = set(), [code]
    while waiting:
        part = waiting.pop()
        names.update(part.co_names)
        waiting += [const for const in part.co_consts if isinstance(const, types.CodeType)]
    return frozenset(names)
