"""List the layers of a traced model in execution order, with their costs and attention heads.

In:   a model and the graph of its forward.
Out:  one Layer for each module that the graph calls or whose parameters it reads, and for each
      module inside an opaque one; costs if there is an example input; the heads of attentions.
Not:  no selection of layers (plan/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcil_dsl.model.calls import is_plain_forward
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.side_effects import Attributes, drawn_apart

# Modules whose weights scale single elements, in two or more dimensions: no connections to prune.
SCALES = (nn.LayerNorm, nn.RMSNorm)
OUT_IN, IN_OUT = (0, 1), (1, 0)
# The names of the number of heads and of the projections in torch, torchvision, timm and
# transformers.
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
NUM_SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
FUSED = ("in_proj_weight", "qkv", "c_attn")  # queries, keys, values in one weight
QUERY = ("q_proj", "query", "q", "q_lin", "to_q", "q_proj_weight")
KEY = ("k_proj", "key", "k", "k_lin", "to_k", "k_proj_weight")
VALUE = ("v_proj", "value", "v", "v_lin", "to_v", "v_proj_weight")
OUTPUT = ("out_proj", "proj", "o_proj", "c_proj", "out_lin", "o", "to_out.0")


@dataclass(frozen=True)
class Weight:
    """A parameter that can be pruned: a matrix of connections, or a stack of them.

    name      in full, "layer1.0.conv1.weight"; tied weights have the name of their first use
    out_axis  the axis of the outputs; in_axis is that of the inputs of a group (a transposed
              convolution: inputs on axis 0, the outputs of a group on axis 1)
    groups    the number of groups of a convolution; 1: each output depends on every input
    macs      its multiply-accumulates for one example; None: not measured
    """

    name: str
    shape: tuple[int, ...]
    out_axis: int = 0
    in_axis: int = 1
    groups: int = 1
    macs: int | None = None


@dataclass(frozen=True)
class Layer:
    """One module of the model.

    path      its name, "layer1.0.conv1"
    called    the path of the module that the graph calls for it: itself, or the opaque
              module around it ("encoder.attention" for "encoder.attention.out_proj")
    prunable  its own parameters that can be pruned: none, one, or several (an LSTM has two for
              each layer and direction)
    is_plain  every use is a call of its own, with one tensor and the forward of torch.nn: the
              kept units can be computed alone (`compute = kept`)
    is_written  its forward changes a weight of it in place
    """

    path: str
    called: str
    module: nn.Module = field(compare=False, repr=False)
    prunable: tuple[Weight, ...] = ()
    is_plain: bool = False
    is_written: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        """The names of its class and base classes, without nn.Module."""
        classes = type(self.module).__mro__
        return tuple(c.__name__ for c in classes[: classes.index(nn.Module)])

    @property
    def type(self) -> str:
        return self.types[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """The full names of the parameters that can be pruned."""
        return tuple(weight.name for weight in self.prunable)

    @property
    def macs(self) -> int | None:
        """Those of all its weights; None if it has none, or one was not measured."""
        counts = [weight.macs for weight in self.prunable if weight.macs is not None]
        return sum(counts) if counts and len(counts) == len(self.prunable) else None

    @property
    def hides_weight(self) -> bool:
        """Whether its type can be pruned, but a weight is not a parameter of its own."""
        return any(name not in self.module._parameters for name in _weight_names(self.module))

    @property
    def no_mask(self) -> str | None:
        """Why a mask would not last on a weight of it; None if it does."""
        if self.hides_weight:
            return "has no weight of its own to mask: it is computed from other parameters"
        if self.is_written or getattr(self.module, "max_norm", None) is not None:
            return "changes its weight in place at each call: a mask would be lost"
        return None


def list_layers(model: nn.Module, graph: fx.Graph) -> tuple[Layer, ...]:
    """Every layer that the graph uses, in the order of first use."""
    layers: dict[str, Layer] = {}
    first_use: dict[int, str] = {}
    plain = _called_plainly(graph)
    for path, called in _uses(model, graph):
        if path not in layers:
            module = model.get_submodule(path)
            prefix = f"{path}." if path else ""
            weights = tuple(
                replace(weight, name=first_use.setdefault(id(own), prefix + weight.name))
                for weight, own in _prunable(module)
            )
            is_plain = path in plain and is_plain_forward(module)
            layers[path] = Layer(path, called, module, weights, is_plain)
    return tuple(layers.values())


def unused_layers(model: nn.Module, layers: tuple[Layer, ...]) -> list[tuple[str, nn.Module]]:
    """Modules with a prunable weight that the graph does not use."""
    used = {layer.path for layer in layers}
    return [
        (path, module)
        for path, module in model.named_modules()
        if path not in used and _weight_names(module)
    ]


def with_macs(layers: tuple[Layer, ...], model: nn.Module, example: Inputs) -> tuple[Layer, ...]:
    """The layers with their multiply-accumulates for one example.

    The model runs once on the meta device: shapes only, no arithmetic, no memory. A model whose
    forward reads values fails there and runs once on the values; macs stay None if that fails
    too. Lookups of an embedding count as zero.
    """
    positions: dict[str, int] = {}

    def remember(path: str, width: int, of_input: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            seen = [*args, *kwargs.values()][0] if of_input else output
            seen = seen.data if isinstance(seen, nn.utils.rnn.PackedSequence) else seen
            positions[path] = positions.get(path, 0) + seen.numel() // width

        return hook

    handles = []
    for layer in layers:
        if layer.prunable and (counted := _counted(layer.module)):
            hook = remember(layer.path, *counted)
            handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
    try:
        try:
            batch = _run_on_meta(model, example)
        except Exception:  # any model may fail on the meta device
            if any(tensor.is_meta for tensor in model.parameters()):
                return layers
            positions.clear()
            batch = _run_on_values(model, example)
    except Exception:  # the costs stay unknown
        return layers
    finally:
        for handle in handles:
            handle.remove()

    def macs(layer: Layer, weight: Weight) -> int | None:
        if isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
            return 0
        # A projection inside an attention module sees as many positions as that module.
        seen = positions.get(layer.path, positions.get(layer.path.rpartition(".")[0]))
        return None if seen is None else math.prod(weight.shape) * seen // batch

    return tuple(
        replace(layer, prunable=tuple(replace(w, macs=macs(layer, w)) for w in layer.prunable))
        for layer in layers
    )


def _uses(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """(path of a module that the graph uses, path of the module that it calls for it)."""
    for node in graph.nodes:
        called = node.target if node.op == "call_module" else node.meta.get("opaque")
        if called is not None:
            for name, _ in model.get_submodule(called).named_modules(prefix=called):
                yield name, called
        elif node.op == "get_attr" and isinstance(_attribute(model, node.target), nn.Parameter):
            owner = node.target.rpartition(".")[0]
            yield owner, owner


def _called_plainly(graph: fx.Graph) -> set[str]:
    """The modules that every use calls with one tensor, and whose parameters no node reads."""
    called: set[str] = set()
    otherwise: set[str] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            otherwise.add(node.target.rpartition(".")[0])
        elif node.op == "call_module":
            is_plain = len(node.args) == 1 and not node.kwargs and "opaque" not in node.meta
            (called if is_plain else otherwise).add(node.target)
    return called - otherwise


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's matrices of connections, even if they are not parameters now."""
    match module:
        case nn.MultiheadAttention():
            separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            return ("in_proj_weight",) if module._qkv_same_embed_dim else separate
        case nn.RNNBase():
            names = [name for weights in module._all_weights for name in weights]
            return tuple(name for name in names if name.startswith("weight"))
        case nn.RNNCellBase():
            return ("weight_ih", "weight_hh")
        case nn.modules.conv._ConvNd() | nn.Linear() | nn.Bilinear():
            return ("weight",)
        case nn.Embedding() | nn.EmbeddingBag():
            return ("weight",)
    weight = module._parameters.get("weight")
    is_matrix = weight is not None and weight.dim() >= 2 and not isinstance(module, SCALES)
    return ("weight",) if is_matrix else ()


def _prunable(module: nn.Module) -> Iterator[tuple[Weight, nn.Parameter]]:
    """Each prunable weight, named as in the module, and its parameter."""
    out_axis, in_axis = OUT_IN
    match module:
        case nn.modules.conv._ConvTransposeNd() | nn.Embedding() | nn.EmbeddingBag():
            out_axis, in_axis = IN_OUT
        case object(nf=int(width), weight=nn.Parameter() as own) if own.shape[1:] == (width,):
            out_axis, in_axis = IN_OUT  # the Conv1D of GPT-2
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    for name in _weight_names(module):
        # Not getattr: it computes a parametrized weight, which may change its parameters.
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield Weight(name, tuple(parameter.shape), out_axis, in_axis, groups), parameter


def _counted(module: nn.Module) -> tuple[int, bool] | None:
    """(width, of the input): each weight is used once per `width` numbers of the input or output.

    A transposed convolution uses its weights at each position of the input, other layers at each
    position of the output.
    """
    match module:
        case nn.modules.conv._ConvTransposeNd():
            return module.in_channels, True
        case nn.modules.conv._ConvNd():
            return module.out_channels, False
        case nn.Linear() | nn.Bilinear():
            return module.out_features, False
        case nn.MultiheadAttention():
            return module.embed_dim, False
        case nn.RNNBase() | nn.RNNCellBase():
            return module.input_size, True
        case object(nf=int(width)):
            return width, False
    return None


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _run_on_meta(model: nn.Module, example: Inputs) -> int:
    state = {n: t.to("meta") for n, t in [*model.named_parameters(), *model.named_buffers()]}
    with torch.device("meta"):
        return _run(model, state, example.map(lambda tensor: tensor.to("meta")))


def _run_on_values(model: nn.Module, example: Inputs) -> int:
    """Run on copies of the buffers; the random number generators do not advance."""
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    return _run(model, buffers, example.map(torch.clone))


def _run(model: nn.Module, state: dict[str, Tensor], given: Inputs) -> int:
    before = [Attributes(module) for module in model.modules()]
    model.eval()
    try:
        with drawn_apart(keeper=model), torch.no_grad():
            torch.func.functional_call(model, state, given.args, given.kwargs, tie_weights=False)
    finally:
        for attributes in before:
            attributes.restore()
    return given.batch_size()


# -- attention heads -----------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadShare:
    """The share of a weight that belongs to each head of the attention `owner`.

    The outputs of a projection into heads, and the inputs of the output projection (is_output
    False), are laid out as (parts, num_heads, width); parts is 3 if one weight computes queries,
    keys and values.
    """

    owner: str
    num_heads: int
    is_output: bool
    parts: int = 1


def find_heads(model: nn.Module, weights: Mapping[str, Weight]) -> dict[str, HeadShare]:
    """The projections of every attention with known heads, among `weights` by name.

    Several heads of queries that share keys and values count as one head. An attention with other
    names than those above has no heads here.
    """
    found: dict[str, HeadShare] = {}
    for path, module in model.named_modules():
        num_heads = _number(module, NUM_HEADS)
        if num_heads is None:
            continue
        num_shared = _number(module, NUM_SHARED) or num_heads
        fused = _first(weights, path, FUSED)
        separate = [_first(weights, path, names) for names in (QUERY, KEY, VALUE)]
        # BERT and its relatives: `attention.output.dense` next to `attention.self`.
        sibling = _first(weights, path.rpartition(".")[0], ("output.dense",))
        out = _first(weights, path, OUTPUT) or sibling
        if fused and num_shared == num_heads:
            shares = {fused: HeadShare(path, num_heads, True, 3)}
        elif all(separate):
            shares = {name: HeadShare(path, num_shared, True) for name in separate if name}
        else:
            continue
        if out:
            shares[out] = HeadShare(path, num_shared, False)
        if all(_divides(weights[name], share) for name, share in shares.items()):
            found |= shares
    return found


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for place in (module, getattr(module, "config", None)):
        for name in names:
            number = getattr(place, name, None)
            if isinstance(number, int) and number > 0:
                return number
    return None


def _first(weights: Mapping[str, Weight], path: str, names: tuple[str, ...]) -> str | None:
    """The first of these parameters, or of the weights of these submodules, below a path."""
    prefix = f"{path}." if path else ""
    names = tuple(prefix + own for name in names for own in (name, f"{name}.weight"))
    return next((name for name in names if name in weights), None)


def _divides(weight: Weight, share: HeadShare) -> bool:
    size = weight.shape[weight.out_axis if share.is_output else weight.in_axis]
    return size % (share.parts * share.num_heads) == 0
