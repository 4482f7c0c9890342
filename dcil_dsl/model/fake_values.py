"""The values of a growing graph as fake tensors: sizes and types without numbers.

In:   a model, tensors like its inputs, the type that autocast computes in.
Out:  the value of each node of the graph; UNKNOWN if it depends on the numbers of a tensor.
Not:  no decisions: guards.py makes them.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from dcil_dsl.model.side_effects import Attributes, Randomness

UNKNOWN = object()
LOG = logging.getLogger("torch._subclasses.fake_tensor")  # of errors that become UNKNOWN


class FakeValues:
    """values: the values of nodes, computed on demand.

    example    tensors like the graph's inputs, by name
    precision  the type that autocast computes in; None: no autocast
    apart      a context in which forwards of modules run untraced
    skipped    a function that only checks and does not run
    """

    def __init__(
        self,
        model: nn.Module,
        example: Mapping[str, Tensor],
        precision: torch.dtype | None,
        apart: Callable[[], AbstractContextManager[None]],
        skipped: Callable[..., object],
    ):
        self.model, self.example, self.precision = model, example, precision
        self.apart, self.skipped = apart, skipped
        self.values: dict[fx.Node, object] = {}
        self.fake: FakeTensorMode | None = None
        first = next(model.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device

    def catch_up(self, graph: fx.Graph) -> None:
        """Run the new nodes in the order of the graph, which matters for changes in place."""
        new = list(takewhile(lambda node: node not in self.values, reversed(graph.nodes)))
        if not new:
            return
        with self._without_numbers():
            for node in reversed(new):
                self.values[node] = self._run(node)

    @contextmanager
    def _without_numbers(self) -> Iterator[None]:
        if self.fake is None:
            _start_autograd()
            self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        cast: AbstractContextManager[Any] = nullcontext()
        if self.precision is not None:
            cast = torch.autocast(self.device.type, dtype=self.precision, cache_enabled=False)
        was_silent, LOG.disabled = LOG.disabled, True
        try:
            with self.apart(), self.fake, torch.no_grad(), cast:
                yield
        finally:
            LOG.disabled = was_silent

    def _run(self, node: fx.Node) -> object:
        target: Any = node.target
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._known)
            match node.op:
                case "placeholder":
                    return self._placed(self.example[target])
                case "get_attr":
                    return self._as_fake(operator.attrgetter(target)(self.model))
                case "call_function" if target is not self.skipped:
                    return target(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                case "call_module":
                    return self._call(self.model.get_submodule(target), args, kwargs)
        except Exception:  # any computation that needs numbers
            pass
        return UNKNOWN

    def _known(self, node: fx.Node) -> Any:
        value = self.values[node]
        if value is UNKNOWN:
            raise LookupError(node.name)
        return value

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        fakes = {name: self._as_fake(tensor) for name, tensor in tensors.items()}
        attributes = [Attributes(part) for part in module.modules()]
        randomness = Randomness(module)
        try:
            return functional_call(module, fakes, args, kwargs, tie_weights=False)
        finally:
            for part in attributes:
                part.restore()
            randomness.restore()

    def _placed(self, like: Tensor) -> Tensor:
        """An input of this size on the device of the model."""
        return torch.empty(like.shape, dtype=like.dtype, device=self.device)

    def _as_fake(self, value: Any) -> Any:
        def change(leaf: Any) -> Any:
            assert self.fake is not None
            return self.fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

        return pytree.tree_map(change, value)


@torch.enable_grad()
def _start_autograd() -> None:
    """Make autograd count the devices before fake tensors add a GPU that does not exist.

    With such a GPU counted, the first backward pass of the process would break backward passes in
    forked children.
    """
    if not torch.cuda.is_available():
        torch.autograd.backward(torch.ones(1, requires_grad=True))
