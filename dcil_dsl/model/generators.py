"""Random number generators that a model keeps, next to those of the process.

In:   a module.
Out:  the generators of torch, numpy and Python that its attributes hold or that its methods name,
      and their states, read and restored.
Not:  the generators of the process (side_effects.py).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

COLLECTIONS = (list, tuple, set, frozenset)
PLAIN = (bool, int, float, str, type(None), Tensor, nn.Module, type, ModuleType)
NOT_SEARCHED = ("_modules", "_parameters", "_buffers", "_remembered")
LEVELS = 4  # of collections and objects in each other
KINDS = (torch.Generator, random.Random)
OF_NUMPY = ("Generator", "RandomState")
APART = 0x9E3779B97F4A7C15  # between the seeds of two generators
States = list[tuple[Any, Any]]  # each generator with its state
_known: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


def kept_generators(module: nn.Module) -> list[Any]:
    """The generators of a module and its submodules, each once."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    for part in module.modules():
        kind: type = type(part)
        if kind.__module__.startswith("torch.nn."):
            continue  # torch's own modules keep none
        own = [value for name, value in vars(part).items() if name not in NOT_SEARCHED]
        own += [names[name] for names, name in _named_by(kind) if is_generator(names.get(name))]
        for value in _within(own, seen):
            if is_generator(value) and not isinstance(value, random.SystemRandom):
                found[id(value)] = value
    return list(found.values())


def is_generator(value: object) -> bool:
    return isinstance(value, _kinds())


def read_states(generators: list[Any]) -> States:
    return [(one, _state_of(one)) for one in generators]


def restore_states(states: States) -> None:
    for generator, state in states:
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            generator.setstate(state)
        elif hasattr(generator, "bit_generator"):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)


def seed_kept(module: nn.Module, seed: int) -> None:
    """Seed the generators of a module, each with a seed of its own. They are looked up once."""
    if module not in _known:
        _known[module] = kept_generators(module)
    for number, generator in enumerate(_known[module], 1):
        own = (seed + number * APART) % 2**63
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        elif hasattr(generator, "bit_generator"):
            generator.bit_generator.state = type(generator.bit_generator)(own).state
        else:
            generator.seed(own if isinstance(generator, random.Random) else own % 2**32)


def has_moved(states: States) -> bool:
    """Whether one of the generators has drawn since its state was read."""
    return any(not _is_same(_state_of(generator), state) for generator, state in states)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def _is_same(now: Any, before: Any) -> bool:
    if isinstance(now, Tensor):
        return torch.equal(now, before)
    if isinstance(now, dict):
        return all(_is_same(now[key], before[key]) for key in now)
    if isinstance(now, tuple):
        return all(map(_is_same, now, before))
    return bool((now == before).all()) if hasattr(now, "all") else bool(now == before)


def _kinds() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return KINDS
    return (*KINDS, *(getattr(numpy.random, name) for name in OF_NUMPY))


def _within(values: list[Any], seen: set[int]) -> Iterator[Any]:
    """The values, what collections hold, and the attributes of objects, a few levels down."""
    for _ in range(LEVELS):
        inner: list[Any] = []
        for value in values:
            if isinstance(value, PLAIN) or id(value) in seen:
                continue
            seen.add(id(value))
            yield value
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, COLLECTIONS):
                inner += value
            else:
                inner += getattr(value, "__dict__", {}).values()
        values = inner


@cache
def _named_by(kind: type) -> tuple[tuple[Mapping[str, Any], str], ...]:
    """The attributes of a class, and the global names in its methods; the bases' too."""

    def pairs() -> Iterator[tuple[Mapping[str, Any], str]]:
        for owner in kind.__mro__:
            if owner is nn.Module:
                return
            for attribute, value in vars(owner).items():
                yield vars(owner), attribute
                code = getattr(value, "__code__", None)
                for name in code.co_names if code is not None else ():
                    yield value.__globals__, name

    return tuple(pairs())
