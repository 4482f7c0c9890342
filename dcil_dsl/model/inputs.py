"""The inputs of a model: example inputs, and the arguments that its graph takes.

In:   a tuple, a dict, a tensor or an Inputs; the signature of a forward.
Out:  Inputs, the example in one form; Arguments, which binds a call to the inputs of a graph.
Not:  nothing runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.model.side_effects import SIMPLE


@dataclass(frozen=True)
class Inputs:
    """One call of a model: `model(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: object) -> Inputs:
        """A tuple or list is positional arguments, a mapping keyword arguments, else one input."""
        match example:
            case Inputs():
                return example
            case tuple() | list():
                return cls(tuple(example))
            case Mapping():
                return cls((), dict(example))
        return cls((example,))

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The inputs with every tensor changed, however deep in lists and dictionaries."""
        return Inputs(map_tensors(change, self.args), map_tensors(change, self.kwargs))

    def to(self, *where: torch.device | torch.dtype) -> Inputs:
        """The inputs with every tensor moved; integers keep their type."""

        def move(value: Tensor) -> Tensor:
            for place in where:
                if isinstance(place, torch.device) or value.is_floating_point():
                    value = value.to(place)
            return value

        return self.map(move)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the inputs."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return (leaf for leaf in leaves if isinstance(leaf, Tensor))

    def batch_size(self) -> int:
        """The size of the first dimension of the first tensor; 1 for a tensor without dimensions.

        A list of images, as for detection models, is a batch of its length.
        """
        first = next(iter([*self.args, *self.kwargs.values()]), None)
        if isinstance(first, list) and first:
            return len(first)
        tensor = next(self.tensors(), None)
        return tensor.shape[0] if tensor is not None and tensor.dim() else 1


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `change` applied to every tensor in it."""
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, value)


def doubled(inputs: Inputs) -> Inputs:
    """A batch of one example, with its flipped copy as a second one; any other batch unchanged.

    Lists of one entry, as of images and boxes for a detector, get it a second time.
    """
    given = [*inputs.args, *inputs.kwargs.values()]
    if given and all(isinstance(value, list) and len(value) == 1 for value in given):
        twice = {name: value * 2 for name, value in inputs.kwargs.items()}
        return Inputs(tuple(value * 2 for value in inputs.args), twice)
    if not _is_batch(inputs) or inputs.batch_size() != 1:
        return inputs
    return inputs.map(lambda t: torch.cat([t, t.flip(-1)]))


def resized(inputs: Inputs, size: int) -> Inputs:
    """A batch of `size` copies of the first example; inputs that are not a batch, unchanged."""
    if not _is_batch(inputs):
        return inputs
    return inputs.map(lambda t: t[:1].expand(size, *t.shape[1:]))


EXAMPLES, OTHER_EXAMPLES = 3, 7  # sizes of fake batches; compare.py uses other sizes


def as_fakes(inputs: Inputs) -> tuple[Inputs, Inputs | None]:
    """Two calls with different sizes, where sizes may differ between the calls of one training.

    These are the number of examples, and the length of a sequence: the second dimension of tensors
    with two or three. The second call is None if any size may differ.
    """
    if not _is_batch(inputs):
        return inputs, None

    def longer(tensor: Tensor) -> Tensor:
        if tensor.dim() not in (2, 3) or tensor.shape[1] == 0:
            return tensor
        return tensor[:, :1].expand(-1, 2 * tensor.shape[1] + 3, *tensor.shape[2:])

    return resized(inputs, EXAMPLES), resized(inputs, OTHER_EXAMPLES).map(longer)


def _is_batch(inputs: Inputs) -> bool:
    """Whether the first dimension of every tensor counts the examples."""
    if any(isinstance(value, (list, dict)) for value in [*inputs.args, *inputs.kwargs.values()]):
        return False
    if any(tensor.layout != torch.strided for tensor in inputs.tensors()):
        return False  # such as the sparse matrix of a graph network
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in inputs.tensors()}
    return len(sizes) == 1 and None not in sizes and sizes != {0}


@dataclass(frozen=True)
class Arguments:
    """Which arguments of a forward are inputs of its graph.

    positional  the names of positional parameters, in order
    live        the names of the graph's inputs, in order; None: the whole model is opaque and
                takes any arguments
    held        the arguments that the example did not give, with the defaults that the graph has
    fixed       the arguments of the example that are not tensors (flags, numbers, strings): they
                are part of the graph, and each call must give the same
    """

    positional: tuple[str, ...]
    live: tuple[str, ...] | None
    held: dict[str, object] = field(default_factory=dict)
    fixed: dict[str, object] = field(default_factory=dict)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The live arguments of a call, in order.

        Raises TypeError for one that is missing, unknown, given twice, or held at its default.
        """
        live = self.live or ()
        if len(args) > len(self.positional):
            inputs = count(len(args), "positional input")
            raise TypeError(f"{inputs}, the model takes {len(self.positional)}")
        given: dict[str, Any] = dict(zip(self.positional, args))
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"`{name}` is given twice")
            given[name] = value
        for name, value in given.items():
            if name in live:
                continue
            if name in self.fixed:
                if value != self.fixed[name]:
                    raise TypeError(
                        f"`{name}` is {self.fixed[name]!r} in the example inputs and the graph"
                    )
                continue
            if name not in self.held:
                raise TypeError(
                    f"`{name}` is not an input of this graph; it takes {', '.join(live)}"
                )
            default = self.held[name]
            if value is not default and not (isinstance(value, SIMPLE) and value == default):
                raise TypeError(
                    f"`{name}` is held at its default {default!r}: only arguments that the "
                    "example inputs give are inputs of the graph"
                )
        missing = [name for name in (*live, *self.fixed) if name not in given]
        if missing:
            names = ", ".join(f"`{name}`" for name in missing)
            raise TypeError(f"{names} missing: the example inputs of the graph give it")
        return tuple([given[name] for name in live])


def arguments_of(
    model: nn.Module,
    example: Inputs | None = None,
    live: tuple[str, ...] | None = None,
    fixed: Mapping[str, object] | None = None,
) -> Arguments:
    """The Arguments of a model's forward.

    example  its arguments are live or fixed. Without an example, `live` and `fixed` name them;
             without these, parameters without a default are live.
    """
    fixed = dict(fixed or {})
    parameters = inspect.signature(model.forward).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = tuple(name for name, kind in kinds.items() if kind in by_place)
    if example is not None:
        if len(example.args) > len(positional):  # forward(*features)
            return Arguments(positional, None)
        given = {**dict(zip(positional, example.args)), **example.kwargs}
        names = [name for name in {**kinds, **example.kwargs} if name in given]
        fixed = {name: given[name] for name in names if isinstance(given[name], SIMPLE)}
        live = tuple(name for name in names if name not in fixed)
    elif live is None:
        if inspect.Parameter.VAR_POSITIONAL in kinds.values():
            return Arguments(positional, None)
        live = tuple(
            name
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        )
    held = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in (*live, *fixed) and parameter.default is not inspect.Parameter.empty
    }
    return Arguments(positional, live if live else None, held, fixed)
