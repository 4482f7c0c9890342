"""A tracer of fx that keeps a module opaque if it cannot follow the module's forward.

In:   a model that tracing may write to, the arguments that are inputs, modules to keep opaque.
Out:  the graph; the opaque modules, with the reasons.
Not:  no restoring of the model's attributes: trace.py, which gives a copy, does it.

A call of an opaque module has its path in meta["opaque"]. A side effect that a graph cannot express
(counting calls, drawing numbers in Python, autocast) is a failure like any other: the module in
whose forward it happens stays opaque.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import immutable_collections as immutable
from torch.utils import _pytree as pytree

from dcil_dsl.model.calls import has_own_methods
from dcil_dsl.model.copies import used_by_hooks
from dcil_dsl.model.dataflow import written
from dcil_dsl.model.fake_values import UNKNOWN
from dcil_dsl.model.generators import is_generator
from dcil_dsl.model.guards import Decisions, guard
from dcil_dsl.model.inner_checkpoints import run_through
from dcil_dsl.model.inputs import Arguments
from dcil_dsl.model.patches import following
from dcil_dsl.model.proxies import MakeObject, ProxyTracer, Unfollowed, is_object
from dcil_dsl.model.side_effects import (
    CONSTANT,
    MISSING,
    Attributes,
    Randomness,
    changed_attribute,
    holders,
    same_content,
)


class Shared(Unfollowed):
    """A forward changes a collection that other modules hold: whatever has all is opaque."""

    def __init__(self, reason: str, holders: set[nn.Module]):
        super().__init__(reason)
        self.holders = holders


class Tracer(ProxyTracer):
    """Traces `model`; `opaque` has the opaque modules, with the reasons."""

    # A buffer that the forward reads (x - self.mean[:, None]) stays a buffer of the graph.
    proxy_buffer_attributes = True

    def __init__(
        self,
        model: nn.Module,
        arguments: Arguments,
        keep: Mapping[str, str],
        decisions: Decisions,
    ):
        named = [*model.named_buffers(), *model.named_parameters()]
        super().__init__(decisions, {id(tensor): name for name, tensor in named})
        self.model, self.arguments, self.keep = model, arguments, keep
        self.opaque: dict[str, str] = {}
        # Modules that keep a memo for later calls, and whether it depends on weights.
        self.memos: dict[str, bool] = {}
        self.is_output = False
        self.taken_apart: dict[int, Any] = {}
        self.installed = set(model.modules())
        self.reads: dict[str, fx.Proxy] = {}
        self.learns = torch.is_grad_enabled()

    def trace_model(self) -> fx.Graph:
        """The graph of the model's forward. After any exception, the model itself is opaque."""
        with run_through(), following(self):
            graph = self.trace(self.model)
        for node in graph.nodes:
            node.type = None  # the generated code may not know the names in an annotation
        return graph

    # -- methods that fx calls ---------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A layer of torch.nn whose instance has a forward of its own is not of its type."""
        return super().is_leaf_module(m, module_qualified_name) and not has_own_methods(m)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        live: dict[str, Any] = {}
        for name in self.arguments.live or ():
            live[name] = self.create_proxy("placeholder", name, (), {})
        live |= self.arguments.fixed

        placed = []  # positional where possible
        for name in self.arguments.positional:
            if name not in live:
                break
            placed.append(live.pop(name))

        def forward() -> Any:
            attributes, randomness = Attributes(self.model), Randomness(self.model)
            result = self.model.forward(*placed, **live)
            self._refuse_changes(attributes, randomness)
            self.is_output = True
            return result

        return forward, []

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self.decisions.running:
            return attr_val
        name = self.names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in self.reads or self.reads[name].node._erased:
            self.reads[name] = self.create_proxy("get_attr", name, (), {})
        return self.reads[name]

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        """As in fx; a call under torch.no_grad() is detached in the graph."""
        proxy = super().create_proxy(kind, *args, **kwargs)
        if not kind.startswith("call") or torch.is_grad_enabled() == self.learns:
            return proxy
        if not self.learns or written(proxy.node, self.model):
            raise Unfollowed("it changes torch's gradient mode, which a graph does not keep")
        value = self.decisions.value(proxy.node)
        if isinstance(value, Tensor):
            return super().create_proxy("call_method", "detach", (proxy,), {})
        if value is UNKNOWN or any(isinstance(x, Tensor) for x in pytree.tree_leaves(value)):
            if proxy.node.target is not guard:
                raise Unfollowed("it computes under torch.no_grad(), which a graph does not keep")
        return proxy

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            if a.node._erased:
                raise Unfollowed("it uses a value that an opaque module keeps in an attribute")
            return a.node
        if self.is_output and is_object(a):
            return self._remade(a)
        if isinstance(a, nn.Module):
            raise Unfollowed("it passes a module to a function")
        if is_generator(a):
            raise Unfollowed("it draws from a random number generator of its own")
        if isinstance(a, torch.Tensor) and id(a) in self.names:
            return self.create_node("get_attr", self.names[id(a)], (), {})
        # fx would make plain dictionaries of these.
        if isinstance(a, OrderedDict) and not is_dataclass(a) and type(a) is OrderedDict:
            pairs = [(self.create_arg(key), self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        if isinstance(a, dict) and is_dataclass(a):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        if isinstance(a, dict) and type(a) not in (dict, immutable.immutable_dict):
            raise Unfollowed(f"it returns or passes on a {type(a).__name__}")
        return super().create_arg(a)

    def _remade(self, value: object) -> fx.Node:
        """A node that makes the returned object again, such as the cache of a decoder."""
        if self.taken_apart.setdefault(id(value)) is None:
            self.taken_apart[id(value)] = "in progress"
            fields = {name: self.create_arg(part) for name, part in vars(value).items()}
            made = self.create_node("call_function", MakeObject(type(value)), (fields,), {})
            self.taken_apart[id(value)] = made
        made = self.taken_apart[id(value)]
        if not isinstance(made, fx.Node):
            raise Unfollowed(f"it returns a {type(value).__name__} that holds itself")
        return made

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.decisions.running:
            return forward(*args, **kwargs)
        if m not in self.installed and not _has_state(m):
            return forward(*args, **kwargs)  # made in the forward, such as nn.CrossEntropyLoss()
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            self._refuse_hooks_that_reach_out(m)
            return super().call_module(m, forward, args, kwargs)
        if path in self.keep:
            return self._call_opaque(path, self.keep[path], args, kwargs)
        start = _Start(self, m, args, kwargs)
        try:
            result = super().call_module(m, forward, args, kwargs)
            self._refuse_changes(start.attributes, start.randomness)
            return result
        except Exception as problem:  # any exception under tracing is a reason
            kept = problem.holders if isinstance(problem, Shared) else set()
            kept |= holders(start.attributes, self.model)
            start.restore(self)
            if start.were_inputs_changed():
                raise  # it fills a list of its caller, which has to be opaque
            if kept - set(m.modules()):
                raise Shared(first_line(problem), kept) from problem
            return self._call_opaque(path, first_line(problem), args, kwargs)

    def _refuse_changes(self, attributes: Attributes, randomness: Randomness) -> None:
        if randomness.moved():
            raise Unfollowed("its forward draws random numbers that depend on no input")
        name = self.changed(attributes)
        if name is not None:
            raise Unfollowed(f"its forward changes `self.{name}`, which a graph would hold still")

    def changed(self, before: Attributes) -> str | None:
        """The first attribute with a change that a graph would have to repeat and would not."""
        return changed_attribute(before, lambda name, old, new: self._is_kept(before, old, new))

    def _is_kept(self, before: Attributes, old: object, new: object) -> bool:
        """Whether a graph may omit the change.

        It may if the new value is a number that equals the old one for all sizes of calls. Or if
        it is a memo: of a constant, or in evaluation mode of values that depend only on weights
        (compare.py tests both).
        """
        if isinstance(new, fx.Proxy) and isinstance(old, (int, float)):
            known = self.decisions.constant(new.node)
            if type(known) is not type(old) or known != old:
                return False
            if not self.is_output:
                self._guard(new, None, old, self.decisions.words(new.node))
            return not self.held[new.node, ""]._erased if (new.node, "") in self.held else False
        leaves = pytree.tree_leaves(new)
        constants = [x for x in leaves if type(x) is Tensor and id(x) not in self.names]
        proxies = [x for x in leaves if isinstance(x, fx.Proxy)]
        if not leaves or len(constants) + len(proxies) < len(leaves) or not _is_unset(old, new):
            return False
        if proxies and (before.module.training or not self._are_of_weights(proxies)):
            return False
        path = self.path_of_module(before.module) if before.module is not self.model else ""
        self.memos[path] = self.memos.get(path, False) or bool(proxies)
        return True

    def _are_of_weights(self, proxies: list[fx.Proxy]) -> bool:
        """Whether the values depend only on weights and constants."""
        waiting = [proxy.node for proxy in proxies]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node._erased or node.op == "placeholder" or "opaque" in node.meta:
                return False
            if written(node, self.model):
                return False
            waiting += [n for n in node.all_input_nodes if n not in seen]
            seen.update(node.all_input_nodes)
        return True

    def _refuse_hooks_that_reach_out(self, module: nn.Module) -> None:
        """A call of a module gets the weights of that module only; a hook may not use others."""
        inside = {id(part) for part in [*module.modules(), *module.parameters()]}
        for used in used_by_hooks(module):
            weights = used.parameters() if isinstance(used, nn.Module) else [used]
            others = [self.names[id(x)] for x in weights if id(x) in self.names.keys() - inside]
            if others and id(used) not in inside:
                raise Unfollowed(f"a hook in it uses `{others[0]}`, which is outside of it")

    def _call_opaque(
        self, path: str, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Proxy:
        self._refuse_hooks_that_reach_out(self.model.get_submodule(path))
        called = self.create_proxy("call_module", path, tuple(args), dict(kwargs))
        called.node.meta["opaque"] = path
        self.opaque[path] = reason
        return called


class _Start:
    """The state of the tracer before a module's forward, to restore it."""

    def __init__(
        self,
        tracer: Tracer,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ):
        self.last = next(reversed(tracer.graph.nodes), None)
        self.stack = len(tracer.module_stack)
        self.num_tensors = len(tracer.tensor_attrs)
        self.opaque = len(tracer.opaque)
        self.attributes, self.randomness = Attributes(module), Randomness(module)
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
            tracer.decisions.forget(node)
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
    """The first line of an exception's message, or its type."""
    return str(problem).strip().split("\n")[0] or type(problem).__name__


def _is_unset(old: object, new: object) -> bool:
    """Whether an attribute had no value yet, or a tensor of another shape in its place."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape != new.shape
    return old is None or old is MISSING or isinstance(old, (dict, list)) and not old


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
