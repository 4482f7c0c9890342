"""fx's tracer, which keeps a module whole where it cannot follow its forward.

In:   a model that tracing may write to, the arguments that are inputs, modules to keep whole.
Out:  the graph; why each module that stays one call of it does.
Not:  the model's attributes are put back by trace.py, in whose copy this runs.

A call of a module that stays opaque carries its path in meta["opaque"]. What a graph cannot keep of
a forward (counting its calls, drawing numbers in Python, torch.no_grad, autocast) is a failure like
any other: the module in whose forward it happens stays opaque.
"""

from __future__ import annotations

import builtins
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.masking.path_state import Attributes, same_content
from dcil_dsl.masking.recompute import run_through
from dcil_dsl.model.guards import UNKNOWN, Decisions, hold
from dcil_dsl.model.holders import used_by_hooks
from dcil_dsl.model.inputs import Arguments
from dcil_dsl.model.side_effects import CONSTANT, Randomness, changed_attribute

is_autocast_enabled = torch.is_autocast_enabled
LEN = len  # which insists on a Python number; len(logits) is to be one of the graph
# Functions of torch that read a size or a type as it stands, and know no proxy for one.
TAKE_NO_PROXY = ("ones", "zeros", "empty", "tensor", "finfo")


class Unfollowed(RuntimeError):
    """A forward does what a graph of it would not."""


class Proxy(fx.Proxy):
    """A proxy that takes `x += y` at its word; fx's own makes a new tensor, `x + y`, of it.

    What is set on it (output.logits = y) would be on the proxy, and not in the graph.
    """

    def __getattr__(self, name):
        return Attribute(self, name)

    def __len__(self):
        return self.tracer.length(self)

    def __setattr__(self, name, value):
        if name not in ("tracer", "node"):
            raise Unfollowed(f"it sets `{name}` of a value that is computed")
        super().__setattr__(name, value)


class Attribute(fx.proxy.Attribute):
    """x.shape, of which the length may be known."""

    def __len__(self):
        return self.tracer.length(self)


def _in_place(function):
    def write(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split():
    setattr(Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Traces `model`; `opaque` has the modules kept opaque, with the reason."""

    # A buffer that the forward computes with (x - self.mean[:, None]) stays a buffer of the graph.
    proxy_buffer_attributes = True

    def __init__(
        self,
        model: nn.Module,
        arguments: Arguments,
        keep: Mapping[str, str],
        example: dict[str, Tensor] | None = None,
    ):
        super().__init__(autowrap_functions=())
        self.decisions = Decisions(model, example)
        self.lengths: dict[fx.Node, fx.Node] = {}  # what holds each that was asked for
        self.model, self.arguments, self.keep = model, arguments, keep
        self.opaque: dict[str, str] = {}
        self.names = {
            id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]
        }
        self.installed = set(model.modules())
        self.reads: dict[str, fx.Proxy] = {}
        self.learns = torch.is_grad_enabled()

    def trace_model(self) -> fx.Graph:
        """The graph of the model's forward. Any exception: the model itself has to stay opaque."""
        with run_through(), _no_autocast(self.decisions), _no_backward(), _taking_proxies(self):
            graph = self.trace(self.model)
        for node in graph.nodes:
            node.type = None  # an annotation may name what the generated code does not know
        return graph

    # -- what fx asks ------------------------------------------------------------------------

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        live = {
            name: self.create_proxy("placeholder", name, (), {}) for name in self.arguments.live
        } | self.arguments.fixed

        placed = []  # what can be given by place is
        for name in self.arguments.positional:
            if name not in live:
                break
            placed.append(live.pop(name))

        def forward():
            attributes, randomness = Attributes(self.model), Randomness()
            result = self.model.forward(*placed, **live)
            _refuse_changes(attributes, randomness)
            return result

        return forward, ()

    def proxy(self, node):
        return Proxy(node, self)

    def to_bool(self, obj):
        value = self.decisions.of(obj.node)
        if value is UNKNOWN:
            return super().to_bool(obj)
        fact = obj if isinstance(value, bool) else self._call(operator.truth, obj)
        self._call(hold, fact, bool(value), self.decisions.words(obj.node))
        return bool(value)

    def length(self, obj) -> int:
        """len(obj), which is part of the graph: Python takes it for a number at once."""
        value = self.decisions.of(obj.node)
        if not isinstance(value, (tuple, list)):
            raise Unfollowed("it asks for the length of a value that is computed")
        if obj.node not in self.lengths or self.lengths[obj.node]._erased:
            what = f"len({self.decisions.words(obj.node)})"
            length = self._call(LEN, obj)
            self.lengths[obj.node] = self._call(hold, length, len(value), what).node
        return len(value)

    def iter(self, obj):
        value = self.decisions.of(obj.node)
        if not isinstance(value, (tuple, list)):
            return super().iter(obj)
        return iter([obj[i] for i in range(self.length(obj))])

    def _call(self, function, *args):
        return self.create_proxy("call_function", function, args, {})

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.decisions.running:
            return attr_val
        name = self.names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in self.reads or self.reads[name].node._erased:
            self.reads[name] = self.create_proxy("get_attr", name, (), {})
        return self.reads[name]

    def create_node(self, kind, *args, **kwargs):
        if kind.startswith("call") and torch.is_grad_enabled() != self.learns:
            raise Unfollowed("it computes under torch.no_grad(), which a graph does not keep")
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a):
        if isinstance(a, fx.Proxy) and a.node._erased:
            raise Unfollowed("it uses what a module that could not be traced had put aside")
        if isinstance(a, nn.Module):
            raise Unfollowed("it passes a module to a function")
        if isinstance(a, torch.Tensor) and id(a) in self.names:
            return self.create_node("get_attr", self.names[id(a)], (), {})
        # fx makes plain dictionaries of these.
        if isinstance(a, OrderedDict) and not is_dataclass(a) and type(a) is OrderedDict:
            pairs = [(self.create_arg(key), self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        if isinstance(a, dict) and is_dataclass(a):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        if isinstance(a, dict) and type(a) not in (dict, fx.immutable_collections.immutable_dict):
            raise Unfollowed(f"it returns or passes on a {type(a).__name__}")
        return super().create_arg(a)

    def call_module(self, m, forward, args, kwargs):
        if self.decisions.running:
            return forward(*args, **kwargs)
        if m not in self.installed and not _has_state(m):
            return forward(*args, **kwargs)  # made at the call, nn.CrossEntropyLoss()
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            self._refuse_hooks_that_reach_out(m)
            return super().call_module(m, forward, args, kwargs)
        if path in self.keep:
            return self._call_whole(path, self.keep[path], args, kwargs)
        start = _Start(self, m, args, kwargs)
        try:
            result = super().call_module(m, forward, args, kwargs)
            _refuse_changes(start.attributes, start.randomness)
            return result
        except Exception as problem:  # whatever a forward raises under tracing is the reason
            start.restore(self)
            if start.were_inputs_changed():
                raise  # it fills a list that it was given: the one who gave it has to stay opaque
            return self._call_whole(path, first_line(problem), args, kwargs)

    def _refuse_hooks_that_reach_out(self, module: nn.Module) -> None:
        """A call of the graph gets its own weights alone; a hook may not use others."""
        inside = {id(part) for part in [*module.modules(), *module.parameters()]}
        for used in used_by_hooks(module):
            weights = used.parameters() if isinstance(used, nn.Module) else [used]
            others = [self.names[id(x)] for x in weights if id(x) in self.names.keys() - inside]
            if others and id(used) not in inside:
                raise Unfollowed(f"a hook in it uses `{others[0]}`, which lies outside")

    def _call_whole(self, path, reason, args, kwargs):
        self._refuse_hooks_that_reach_out(self.model.get_submodule(path))
        called = self.create_proxy("call_module", path, tuple(args), dict(kwargs))
        called.node.meta["opaque"] = path
        self.opaque[path] = reason
        return called


class _Start:
    """Where the tracer was before a module's forward, to go back there."""

    def __init__(self, tracer: Tracer, module: nn.Module, args, kwargs):
        self.last = next(reversed(tracer.graph.nodes), None)
        self.stack = len(tracer.module_stack)
        self.num_tensors = len(tracer.tensor_attrs)
        self.opaque = len(tracer.opaque)
        self.attributes, self.randomness = Attributes(module), Randomness()
        self.containers = [
            (value, type(value)(value))
            for value in [*args, *kwargs.values()]
            if type(value) in (list, dict, set)
        ]

    def restore(self, tracer: Tracer) -> None:
        for node in reversed(tracer.graph.nodes):
            if node is self.last:
                break
            tracer.graph.erase_node(node)
            tracer.decisions.values.pop(node, None)
        while len(tracer.module_stack) > self.stack:
            tracer.module_stack.popitem()
        while len(tracer.tensor_attrs) > self.num_tensors:
            _, name = tracer.tensor_attrs.popitem()
            if name.startswith(CONSTANT):
                delattr(tracer.root, name)
        while len(tracer.opaque) > self.opaque:
            tracer.opaque.popitem()
        self.attributes.restore()
        self.randomness.restore()

    def were_inputs_changed(self) -> bool:
        return any(not same_content(now, before) for now, before in self.containers)


def first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0] or type(problem).__name__


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _refuse_changes(attributes: Attributes, randomness: Randomness) -> None:
    if randomness.moved():
        raise Unfollowed("its forward draws random numbers of no tensor that it was given")
    name = changed_attribute(attributes)
    if name is not None:
        raise Unfollowed(f"its forward changes `self.{name}`, which a graph would hold still")


@contextmanager
def _no_autocast(decisions: Decisions) -> Iterator[None]:
    """A forward that chooses its own precision, or asks for that of its caller, is not followed."""

    def enter(self):
        raise Unfollowed("it sets autocast, which a graph does not keep")

    def ask(*args):
        if decisions.running:
            return is_autocast_enabled(*args)
        raise Unfollowed("it asks for autocast, which may differ from call to call")

    kept = torch.autocast.__enter__
    torch.autocast.__enter__, torch.is_autocast_enabled = enter, ask
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.is_autocast_enabled = kept, is_autocast_enabled


@contextmanager
def _no_backward() -> Iterator[None]:
    """Of a torch.autograd.Function a graph would have the forward, and not the backward."""
    base = torch.autograd.Function
    kept = vars(base)["apply"]

    def apply(cls, *args, **kwargs):
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            raise Unfollowed(f"it calls {cls.__name__}, whose backward a graph does not keep")
        return kept.__get__(None, cls)(*args, **kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = kept


@contextmanager
def _taking_proxies(tracer: Tracer) -> Iterator[None]:
    """torch.ones(x.shape[0], 4), torch.finfo(x.dtype) and len(x) are calls of the graph."""

    def taking(function):
        def call(*args, **kwargs):
            if any(isinstance(arg, fx.Proxy) for arg in [*args, *kwargs.values()]):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def length(value):
        if isinstance(value, fx.Proxy) and tracer.decisions.is_tensor(value.node):
            return tracer.create_proxy("call_function", LEN, (value,), {})
        return LEN(value)

    kept = {name: getattr(torch, name) for name in TAKE_NO_PROXY}
    for name, function in kept.items():
        setattr(torch, name, taking(function))
    builtins.len = length
    try:
        yield
    finally:
        builtins.len = LEN
        for name, function in kept.items():
            setattr(torch, name, function)
