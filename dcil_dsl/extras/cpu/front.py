"""A model as a graph of torch functions on named tensors, norms folded.

In:   any nn.Module that torch.export can trace, and the inputs of one call.
Out:  Graph: an fx graph, the tensors that it names, its inputs and the structure of its outputs.
Not:  nothing is compressed or written (export.py); the model is not changed.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs, resized
from dcil_dsl.model.side_effects import SIMPLE

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.linear.default)
NORM = aten._native_batch_norm_legit_no_training.default
# Nodes that compute nothing: assertions about the example, and copies of what nothing changes.
_CHECKS = ("_assert", "sym_constrain", "_check")
_COPIES = (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
CONSTANT, FOLDED = "constant.", ".folded"  # in names of tensors that the original does not have
MOST_FOLDED = 2**20  # numbers of a constant that is computed at export


@dataclasses.dataclass
class Graph:
    """A network as data.

    tensors  every parameter, buffer and constant that a placeholder of the graph stands for
    places   placeholder -> the name in `tensors`
    inputs   (name, placeholder) of each input, in the order of the signature
    outputs  the structure of the outputs, with nodes of the graph in it
    model    the name of the original's class
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    places: dict[fx.Node, str]
    inputs: list[tuple[str, fx.Node]]
    outputs: object
    model: str

    def tensor_of(self, node: object) -> Tensor | None:
        """The stored tensor that a node stands for."""
        if isinstance(node, fx.Node) and node in self.places:
            return self.tensors[self.places[node]]
        return None


def build_graph(model: nn.Module, example_inputs: Inputs) -> Graph:
    """Trace a model in evaluation mode. InputError where torch.export cannot."""
    exported, inputs = _trace(model, example_inputs)
    found = _with_names(exported, model, inputs)
    _drop_what_computes_nothing(found)
    _fold_constants(found)
    _fold_norms(found)
    found.graph.eliminate_dead_code()
    used = set(found.graph.nodes)
    found.places = {node: name for node, name in found.places.items() if node in used}
    return found


def _trace(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Inputs]:
    """The graph for any size of batch; for that of the example where the model needs it."""
    copy = copy_module(model).cpu().eval()
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    inputs = inputs.to(torch.device("cpu"))
    both = resized(inputs, 2) if inputs.batch_size() == 1 else inputs
    problem: Exception | None = None
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for example, dynamic in ((both, True), (inputs, False)):
            try:
                return _export(copy, example, dynamic), example
            except Exception as error:  # a model may refuse to be traced with any error
                problem = problem or error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    fact = " ".join(str(problem).split())[:300]
    raise InputError(
        f"{type(model).__name__} cannot be traced: {type(problem).__name__}: {fact}",
        help="torch.export has to trace the forward; see its page on limits",
    )


def _export(model: nn.Module, inputs: Inputs, dynamic: bool) -> ExportedProgram:
    def sizes(value: object) -> object:
        return {0: Dim.AUTO} if dynamic and isinstance(value, Tensor) and value.dim() else None

    shapes = pytree.tree_map(sizes, (inputs.args, inputs.kwargs))
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    by_name = {**dict(zip(names, shapes[0])), **shapes[1]}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            model,
            inputs.args,
            dict(inputs.kwargs),
            dynamic_shapes=by_name if dynamic else None,
            strict=False,
        )
        decomposed: ExportedProgram = exported.run_decompositions({})
    return decomposed


def _with_names(exported: ExportedProgram, model: nn.Module, inputs: Inputs) -> Graph:
    """The graph of an exported program, every placeholder with the name that it stands for."""
    graph = exported.graph_module.graph
    nodes = {node.name: node for node in graph.nodes}
    state: Mapping[str, Any] = {**exported.state_dict, **exported.constants}
    tensors: dict[str, Tensor] = {}
    places: dict[fx.Node, str] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            tensors[target] = state[target].detach()
            places[nodes[spec.arg.name]] = target
        elif spec.kind != InputKind.USER_INPUT:
            raise InputError(f"the forward holds `{spec.arg.name}`, which is not a tensor")
    signature = exported.graph_signature
    written = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    if written:
        name = next(iter(written.values()))
        raise InputError(f"the forward writes `{name}`: a program has no state")
    parameters = list(inspect.signature(model.forward).parameters)
    given = [*zip(parameters, inputs.args), *inputs.kwargs.items()]
    if len(inputs.args) > len(parameters):
        raise InputError("the forward takes any number of inputs, and a program names each")
    user = [s for s in exported.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    named: list[tuple[str, fx.Node]] = []
    for (name, value), spec in zip(given, user):
        if isinstance(value, Tensor):
            named.append((name, nodes[spec.arg.name]))
        elif not isinstance(value, SIMPLE):
            raise InputError(
                f"`{name}` is of type {type(value).__name__}: an exported network takes tensors"
            )
    if len(given) != len(user):
        raise InputError("an exported network takes tensors, not lists or dictionaries of them")
    leaves: list[object] = []
    for out in exported.graph_signature.output_specs:
        argument = out.arg
        leaf = getattr(argument, "value", None) if not hasattr(argument, "name") else None
        node = nodes.get(getattr(argument, "name", ""))
        leaves.append(leaf if node is None else node)
    spec_out = exported.call_spec.out_spec
    structure = pytree.tree_unflatten(leaves, spec_out) if spec_out is not None else leaves
    return Graph(graph, tensors, places, named, structure, type(model).__name__)


def _drop_what_computes_nothing(found: Graph) -> None:
    for node in list(found.graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target)
        packet = name.split(".")[1] if name.startswith("aten.") else name
        if packet.startswith(_CHECKS) and not node.users:
            found.graph.erase_node(node)
        elif node.target in _COPIES or _is_idle_dropout(node) or _is_idle_cast(node):
            _replace(found, node, node.args[0])
    found.graph.eliminate_dead_code()


def _is_idle_dropout(node: fx.Node) -> bool:
    return node.target == aten.dropout.default and node.args[2] is False


def _is_idle_cast(node: fx.Node) -> bool:
    """A cast to the type that its input has."""
    if node.target != aten._to_copy.default or not isinstance(node.args[0], fx.Node):
        return False
    given, result = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(given, Tensor) or not isinstance(result, Tensor):
        return False
    return given.dtype == result.dtype and node.kwargs.get("memory_format") is None


def _replace(found: Graph, node: fx.Node, other: fx.Node) -> None:
    """Put `other` in the place of a node, in the graph and in the outputs."""
    node.replace_all_uses_with(other)
    found.outputs = pytree.tree_map(lambda leaf: other if leaf is node else leaf, found.outputs)
    found.graph.erase_node(node)


def _fold_constants(found: Graph) -> None:
    """Compute the nodes that depend on no input, such as position indices."""
    constant: dict[fx.Node, Any] = dict.fromkeys(found.places)
    for node in found.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith("aten."):
            continue
        if any(given not in constant for given in node.all_input_nodes):
            continue
        value = node.meta.get("val")
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if isinstance(value, Tensor) and not random and _numbers(value) <= MOST_FOLDED:
            constant[node] = None
    for node in list(found.graph.nodes):
        if node not in constant or node in found.places:
            continue
        if all(user in constant for user in node.users) and not _is_returned(found, node):
            continue  # only a step on the way to another constant
        name = f"{CONSTANT}{node.name}"
        found.tensors[name] = _value(found, node).clone().contiguous()
        with found.graph.inserting_before(next(iter(found.graph.nodes))):
            placeholder = found.graph.placeholder(f"constant_{node.name}")
        placeholder.meta["val"] = node.meta["val"]
        found.places[placeholder] = name
        node.replace_all_uses_with(placeholder)
        found.outputs = pytree.tree_map(
            lambda leaf, node=node, new=placeholder: new if leaf is node else leaf, found.outputs
        )
    found.graph.eliminate_dead_code()


def _numbers(value: Tensor) -> int:
    size = value.numel()
    return size if isinstance(size, int) else MOST_FOLDED + 1  # a size that depends on the batch


def _is_returned(found: Graph, node: fx.Node) -> bool:
    return any(leaf is node for leaf in pytree.tree_leaves(found.outputs))


def _value(found: Graph, node: fx.Node) -> Tensor:
    """The value of a constant node."""
    stored = found.tensor_of(node)
    if stored is not None:
        return stored
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _value(found, n))
    function = cast(Callable[..., Any], node.target)
    with torch.no_grad():
        result = function(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result


def _fold_norms(found: Graph) -> None:
    """Batch norms into the layers before them; other ones become the checked batch_norm."""
    for node in list(found.graph.nodes):
        if node.op != "call_function" or node.target != NORM:
            continue
        results = list(node.users)
        layer = node.args[0]
        numbers = [found.tensor_of(part) for part in node.args[1:5]]
        if (
            isinstance(layer, fx.Node)
            and layer.target in LAYERS
            and len(layer.users) == 1
            and not _is_returned(found, layer)
            and _is_channelwise(layer)
            and _fold(found, layer, node, numbers)
        ):
            new = layer
        else:
            with found.graph.inserting_before(node):
                new = found.graph.call_function(
                    aten.batch_norm.default, (*node.args[:5], False, *node.args[5:7], False)
                )
            new.meta["val"] = results[0].meta["val"] if results else None
        for result in results:
            if result.args[1] == 0:
                _replace(found, result, new)
            else:
                found.graph.erase_node(result)
        found.graph.erase_node(node)


def _is_channelwise(layer: fx.Node) -> bool:
    """Whether dim 1 of the output, which a batch norm scales, is the output of the weight."""
    value = layer.meta["val"]
    return layer.target == aten.conv2d.default or value.dim() == 2


def _fold(found: Graph, layer: fx.Node, norm: fx.Node, numbers: list[Tensor | None]) -> bool:
    """weight * s and (bias - mean) * s + shift, in float64; False where a number is not finite."""
    weight = found.tensor_of(layer.args[1])
    bias = found.tensor_of(layer.args[2]) if len(layer.args) > 2 else None
    gain, shift, mean, variance = numbers
    if weight is None or mean is None or variance is None:
        return False
    if len(layer.args) > 2 and layer.args[2] is not None and bias is None:
        return False
    scale = (variance.double() + float(cast(float, norm.args[6]))).rsqrt()
    if gain is not None:
        scale = scale * gain.double()
    moved = (0 if bias is None else bias.double()) - mean.double()
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    moved = moved * scale + (0 if shift is None else shift.double())
    results = (folded.to(weight.dtype), moved.to(weight.dtype))
    if not all(bool(result.isfinite().all()) for result in results):
        return False
    path = found.places[cast(fx.Node, layer.args[1])].removesuffix(".weight")
    placed = []
    for kind, result in zip(("weight", "bias"), results):
        name = _free_name(f"{path}.{kind}", found.tensors)
        found.tensors[name] = result
        with found.graph.inserting_before(next(iter(found.graph.nodes))):
            node = found.graph.placeholder(name.replace(".", "_"))
        node.meta["val"] = result.to("meta")
        found.places[node] = name
        placed.append(node)
    layer.args = (layer.args[0], *placed, *layer.args[3:])
    return True


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    names: Iterator[str] = (f"{name}{FOLDED}{i or ''}" for i in range(len(taken) + 1))
    return next(free for free in names if free not in taken)


def original_name(name: str) -> str:
    """The name in the original of a tensor that a norm may have been folded into."""
    front, folded, number = name.rpartition(FOLDED)
    return front if folded and (not number or number.isdigit()) else name
