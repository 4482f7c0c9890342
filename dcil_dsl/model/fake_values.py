"""The values of a growing graph as fake tensors: sizes and types, and no numbers.

In:   a model, tensors like its inputs, the type that autocast computes in.
Out:  what each node of the graph gives; UNKNOWN where that takes the numbers of a tensor.
Not:  no decision: guards.py asks.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from dcil_dsl.model.side_effects import Attributes, Randomness

UNKNOWN = object()
LOG = logging.getLogger("torch._subclasses.fake_tensor")  # errors that end up as UNKNOWN


class FakeValues:
    """values: what the nodes give, computed when something is asked.

    example    tensors like the graph's inputs, by name
    precision  the type that autocast computes in; None: there is no autocast
    apart      opened while forwards of modules run, which are not to be traced
    skipped    a function that is not run, as it only checks
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
        """Run the nodes that are new, in the graph's order: a tensor may be changed in place."""
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
        cast = nullcontext()
        if self.precision is not None:
            cast = torch.autocast(self.device.type, dtype=self.precision, cache_enabled=False)
        was_silent, LOG.disabled = LOG.disabled, True
        try:
            with self.apart(), self.fake, torch.no_grad(), cast:
                yield
        finally:
            LOG.disabled = was_silent

    def _run(self, node: fx.Node) -> object:
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._known)
            match node.op:
                case "placeholder":
                    return self._placed(self.example[node.target])
                case "get_attr":
                    return self._as_fake(operator.attrgetter(node.target)(self.model))
                case "call_function" if node.target is not self.skipped:
                    return node.target(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                case "call_module":
                    return self._call(self.model.get_submodule(node.target), args, kwargs)
        except Exception:  # whatever cannot be computed without numbers
            pass
        return UNKNOWN

    def _known(self, node: fx.Node) -> object:
        value = self.values[node]
        if value is UNKNOWN:
            raise LookupError(node.name)
        return value

    def _call(self, module: nn.Module, args: tuple, kwargs: dict) -> object:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        fakes = {name: self._as_fake(tensor) for name, tensor in tensors.items()}
        attributes, randomness = [Attributes(part) for part in module.modules()], Randomness()
        try:
            return functional_call(module, fakes, args, kwargs, tie_weights=False)
        finally:
            for part in attributes:
                part.restore()
            randomness.restore()

    def _placed(self, like: Tensor) -> Tensor:
        """An input of this size, where the model is."""
        return torch.empty(like.shape, dtype=like.dtype, device=self.device)

    def _as_fake(self, value: object) -> object:
        def change(leaf: object) -> object:
            return self.fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

        return pytree.tree_map(change, value)


@torch.enable_grad()
def _start_autograd() -> None:
    """Have autograd count the devices before fake tensors put in a GPU that is not there.

    With that one counted, the first backward pass of the process would forbid those of all its
    forked children.
    """
    if not torch.cuda.is_available():
        torch.ones(1, requires_grad=True).backward()
