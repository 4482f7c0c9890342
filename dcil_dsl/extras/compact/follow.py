"""A model followed through its graph, and the small one that is cut out of it.

In:   a model, the inputs of one call; later the channels that go.
Out:  Followed: its trace for evaluation and its Dependencies; the small network.
Not:  which channels go is decided by dead.py, or stands in a shape file.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.attention import (
    attention_calls,
    dead_heads,
    open_attention,
    why_closed,
)
from dcil_dsl.extras.compact.branches import replace_branch
from dcil_dsl.extras.compact.cut import cut, sizes_of
from dcil_dsl.extras.compact.dependencies import Dependencies
from dcil_dsl.extras.compact.files import ModuleSizes
from dcil_dsl.extras.compact.rules import find_dependencies
from dcil_dsl.graph.inputs import Arguments, Inputs
from dcil_dsl.graph.trace import Traced, TraceError, constants, trace_model


@dataclass(frozen=True)
class Followed:
    """The modules that the graph no longer calls as such.

    opened    attention modules whose heads are nodes of the graph
    replaced  layers and norms that give a constant, their bias
    """

    traced: Traced
    found: Dependencies
    opened: tuple[str, ...]
    replaced: tuple[str, ...] = ()

    @property
    def used(self) -> set[str]:
        """The names of the tensors that the graph uses."""
        nodes = [n for n in self.found.graph.nodes if n.op in ("call_module", "get_attr")]
        targets = {str(node.target) for node in nodes}
        return {
            key
            for key in self.found.first
            if key in targets or any(key.startswith(f"{target}.") for target in targets)
        }


def follow(
    model: nn.Module,
    inputs: Inputs,
    opened: tuple[str, ...] | None = None,
    replaced: tuple[str, ...] = (),
) -> Followed:
    """Trace a copy of `model` on the CPU and number its channels.

    opened    the attention modules to open; None: those that have a dead head and can be opened
    replaced  the modules in whose place their bias is put

    InputError where the model cannot be traced, or is one call as a whole.
    """
    help = "`dcil explain E401` says what can be traced"
    try:
        traced = trace_model(model, inputs)
    except TraceError as error:
        raise InputError(str(error), help=help) from error
    if "" in traced.whole:
        reason = traced.whole[""]
        raise InputError(f"the forward of {traced.name} cannot be traced: {reason}", help=help)
    traced.model.cpu()  # where its zeros are looked at, tensor by tensor
    graph = copy.deepcopy(traced.eval)
    calls = attention_calls(graph, traced.model)
    if opened is None:
        calls = _with_dead_heads(calls, traced.model)
    else:
        calls = [node for node in calls if node.target in opened]
    for node in calls:
        open_attention(graph, node, traced.model)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in replaced:
            replace_branch(graph, node, traced.model)
    bound = traced.arguments.bind(inputs.args, inputs.kwargs)
    found = find_dependencies(graph, traced.model, bound, traced.whole)
    return Followed(traced, found, tuple(node.target for node in calls), replaced)


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a state dict's places. load_state_dict runs code of the model's own."""
    places = model.state_dict()
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def make_small(followed: Followed, gone: Tensor) -> tuple[nn.Module, dict[str, ModuleSizes]]:
    """Cut the traced model in place; it keeps its own class where that still knows how to run.

    It does where the graph did not have to change, and where evaluation uses every weight: the
    auxiliary heads of training would read channels that are gone.
    """
    model, found = followed.traced.model, followed.found
    before = {path: sizes_of(module) for path, module in model.named_modules()}
    idle = any(key not in followed.used for key, _ in model.named_parameters())
    edited = cut(found, gone) or bool(followed.opened or followed.replaced)
    modules = {
        path: ModuleSizes(type=type(module).__name__, before=before[path], after=after)
        for path, module in model.named_modules()
        if (after := sizes_of(module)) != before[path]
    }
    if not edited and not idle:
        for name in constants(model):  # which its forward makes anew
            delattr(model, name)
        model.eval()
        return model, modules
    _take_fixed(found.graph, followed.traced.arguments)
    small = fx.GraphModule(model, found.graph, f"Small{followed.traced.name}").eval()
    small.graph.eliminate_dead_code()
    small.delete_all_unused_submodules()
    small.recompile()
    return small, modules


def _take_fixed(graph: fx.Graph, arguments: Arguments) -> None:
    """The flags and numbers of the example stay arguments: each call has to give the same."""
    given = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    names = [*arguments.positional, *given, *arguments.fixed]
    taken = [name for name in dict.fromkeys(names) if name in given or name in arguments.fixed]
    following = next(node for node in graph.nodes if node.op != "placeholder")
    for name in reversed(taken):
        with graph.inserting_before(following):
            place = given.get(name) or graph.placeholder(name)
        if name in arguments.fixed:
            value = arguments.fixed[name]
            with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
                same = graph.call_function(operator.eq, (place, value))
                graph.call_function(torch._assert, (same, f"`{name}` is not {value!r}"))
        following = place


def _with_dead_heads(calls: list[fx.Node], model: nn.Module) -> list[fx.Node]:
    names = [node.target for node in calls]
    return [
        node
        for node in calls
        if dead_heads(model.get_submodule(node.target))
        and why_closed(node, model) is None
        and names.count(node.target) == 1
    ]
