"""The layers of a traced model, in execution order.

In:   a model and the graph of its forward.
Out:  one Layer for each module that the graph calls or reads a parameter of, with the
      modules inside those that stay opaque; costs where an example input was given.
Not:  nothing is selected or pruned; plan/select.py does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from dcil_dsl.masking.apply import is_plain_forward
from dcil_dsl.masking.path_state import Attributes
from dcil_dsl.masking.rng import drawn_apart
from dcil_dsl.model.inputs import Inputs

# Weights of two dimensions and more that scale, element by element: no connections in them.
SCALES = (nn.LayerNorm, nn.RMSNorm)
OUT_IN, IN_OUT = (0, 1), (1, 0)


@dataclass(frozen=True)
class Weight:
    """A parameter that can be pruned: a matrix of connections, or a stack of them.

    name      in full, "layer1.0.conv1.weight"; tied weights have the name of their first use
    shape     its sizes
    out_axis  the axis that counts outputs, in_axis the one that counts the inputs of a group
              (a transposed convolution: inputs on axis 0, the outputs of a group on axis 1)
    groups    in how many groups outputs and inputs fall, 1: each output sees every input
    macs      multiply-accumulates with it for one example; None: not measured
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
    called    the path of the module that the graph calls for it: itself, or the whole
              module around it ("encoder.attention" for "encoder.attention.out_proj")
    prunable  its own parameters that can be pruned: none, one, or several (an LSTM has two for
              each layer and direction)
    is_plain  every use of it is a call by itself, of one tensor and of torch.nn's own forward: its
              kept units can be computed alone (extras/sparse_compute)
    is_written  its forward was seen to change a weight of it in place
    """

    path: str
    called: str
    module: nn.Module = field(compare=False, repr=False)
    prunable: tuple[Weight, ...] = ()
    is_plain: bool = False
    is_written: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        """The names of its class and of those it is derived from, nn.Module excluded."""
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
        """Those of all its weights; None where it has none, or one was not measured."""
        counts = [weight.macs for weight in self.prunable]
        return None if not counts or None in counts else sum(counts)

    @property
    def hides_weight(self) -> bool:
        """It is of a kind that can be pruned, and a weight of it is no parameter of its own."""
        return any(name not in self.module._parameters for name in _weight_names(self.module))

    @property
    def no_mask(self) -> str | None:
        """Why no mask would last on a weight of it; None where one does."""
        if self.hides_weight:
            return "has no weight of its own that could be masked: it is made of others"
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
    """Modules with a weight that could be pruned, had the graph a use for them."""
    used = {layer.path for layer in layers}
    return [
        (path, module)
        for path, module in model.named_modules()
        if path not in used and _weight_names(module)
    ]


def with_macs(layers: tuple[Layer, ...], model: nn.Module, example: Inputs) -> tuple[Layer, ...]:
    """The layers with their multiply-accumulates for one example.

    The model runs once on the meta device: shapes only, no arithmetic, no memory. One that looks
    at values does not run there, and runs once on them; macs stay None where neither works. To
    look up a row of an embedding multiplies nothing.
    """
    positions: dict[str, int] = {}

    def remember(path, width, of_input):
        def hook(module, args, kwargs, output):
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
        except Exception:  # any model may fail on shapes alone
            if any(tensor.is_meta for tensor in model.parameters()):
                return layers
            positions.clear()
            batch = _run_on_values(model, example)
    except Exception:  # costs are then not known
        return layers
    finally:
        for handle in handles:
            handle.remove()

    def macs(layer: Layer, weight: Weight) -> int | None:
        if isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
            return 0
        # The projection inside an attention module sees as many positions as it does.
        seen = positions.get(layer.path, positions.get(layer.path.rpartition(".")[0]))
        return None if seen is None else math.prod(weight.shape) * seen // batch

    return tuple(
        replace(layer, prunable=tuple(replace(w, macs=macs(layer, w)) for w in layer.prunable))
        for layer in layers
    )


def _uses(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        called = node.target if node.op == "call_module" else node.meta.get("opaque")
        if called is not None:
            for name, _ in model.get_submodule(called).named_modules(prefix=called):
                yield name, called
        elif node.op == "get_attr" and isinstance(_attribute(model, node.target), nn.Parameter):
            owner = node.target.rpartition(".")[0]
            yield owner, owner


def _called_plainly(graph: fx.Graph) -> set[str]:
    """What is called with one tensor wherever it is used, and nowhere read by hand."""
    called, otherwise = set(), set()
    for node in graph.nodes:
        if node.op == "get_attr":
            otherwise.add(node.target.rpartition(".")[0])
        elif node.op == "call_module":
            is_plain = len(node.args) == 1 and not node.kwargs and "opaque" not in node.meta
            (called if is_plain else otherwise).add(node.target)
    return called - otherwise


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    """The parameters of a module that are matrices of connections, whoever holds them now."""
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
    """Each weight under its name in the module, with the parameter that it is."""
    out_axis, in_axis = OUT_IN
    match module:
        case nn.modules.conv._ConvTransposeNd() | nn.Embedding() | nn.EmbeddingBag():
            out_axis, in_axis = IN_OUT
        case object(nf=int(width), weight=nn.Parameter() as own) if own.shape[1:] == (width,):
            out_axis, in_axis = IN_OUT  # the Conv1D of GPT-2
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    for name in _weight_names(module):
        # Not getattr: a parametrised weight is computed anew, which may move what it is made of.
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield Weight(name, tuple(parameter.shape), out_axis, in_axis, groups), parameter


def _counted(module: nn.Module) -> tuple[int, bool] | None:
    """(width, of its input): a weight is used once for each so many numbers that pass."""
    match module:
        # Its weights meet each position of what comes in; other layers make each that goes out.
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


def _attribute(model: nn.Module, target: str):
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _run_on_meta(model: nn.Module, example: Inputs) -> int:
    state = {n: t.to("meta") for n, t in [*model.named_parameters(), *model.named_buffers()]}
    with torch.device("meta"):
        return _run(model, state, example.map(lambda tensor: tensor.to("meta")))


def _run_on_values(model: nn.Module, example: Inputs) -> int:
    """On copies of the buffers, and without a trace in the random numbers."""
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with drawn_apart():
        return _run(model, buffers, example.map(torch.clone))


def _run(model: nn.Module, state: dict[str, Tensor], given: Inputs) -> int:
    before = [Attributes(module) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(model, state, given.args, given.kwargs, tie_weights=False)
    finally:
        for attributes in before:  # what the forward puts aside is of this run
            attributes.restore()
    return given.batch_size()
