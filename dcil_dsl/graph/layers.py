"""The layers of a traced model, in execution order.

In:   a model and the graph of its forward.
Out:  one Layer for each module that the graph calls or reads a parameter of, with the
      modules inside those that stay whole; costs where an example input was given.
Not:  nothing is selected or pruned; plan/select.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

# What can be pruned today: the parameter that is a matrix of connections.
PRUNABLE = (
    (nn.MultiheadAttention, "in_proj_weight"),
    (nn.modules.conv._ConvNd, "weight"),
    (nn.Linear, "weight"),
)


@dataclass(frozen=True)
class Layer:
    """One module of the model.

    path      its name, "layer1.0.conv1"
    called    the path of the module that the graph calls for it: itself, or the whole
              module around it ("encoder.attention" for "encoder.attention.out_proj")
    weight    the full name of the weight that can be pruned, None where there is none;
              layers tied to one weight all give the name of its first use
    macs      multiply-accumulates of that weight for one example; None: not measured
    """

    path: str
    called: str
    module: nn.Module = field(compare=False, repr=False)
    weight: str | None = None
    macs: int | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """The names of its class and of those it is derived from, nn.Module excluded."""
        classes = type(self.module).__mro__
        return tuple(c.__name__ for c in classes[: classes.index(nn.Module)])

    @property
    def type(self) -> str:
        return self.types[0]

    @property
    def hides_weight(self) -> bool:
        """It is of a kind that can be pruned, and its weight is no parameter of its own."""
        return self.weight is None and isinstance(self.module, tuple(kind for kind, _ in PRUNABLE))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that can be pruned."""
        if self.weight is None:
            return ()
        name = self.weight.rpartition(".")[2]
        return tuple(getattr(self.module, name).shape)


def list_layers(model: nn.Module, graph: fx.Graph) -> tuple[Layer, ...]:
    """Every layer that the graph uses, in the order of first use."""
    layers: dict[str, Layer] = {}
    first_use: dict[int, str] = {}
    for path, called in _uses(model, graph):
        if path not in layers:
            module = model.get_submodule(path)
            weight = _prunable(path, module)
            if weight is not None:
                weight = first_use.setdefault(id(model.get_parameter(weight)), weight)
            layers[path] = Layer(path, called, module, weight=weight)
    return tuple(layers.values())


def unused_layers(model: nn.Module, layers: tuple[Layer, ...]) -> list[tuple[str, nn.Module]]:
    """Modules with a weight that could be pruned, had the graph a use for them."""
    used = {layer.path for layer in layers}
    return [
        (path, module)
        for path, module in model.named_modules()
        if path not in used and any(isinstance(module, kind) for kind, _ in PRUNABLE)
    ]


def with_macs(layers: tuple[Layer, ...], model: nn.Module, example_inputs) -> tuple[Layer, ...]:
    """The layers with their multiply-accumulates for one example.

    The model runs once on the meta device: shapes only, no arithmetic, no memory. A model
    that does not run there keeps macs None.
    """
    positions: dict[str, int] = {}

    def remember(path, width_of, of_input=False):
        def hook(module, args, kwargs, output):
            output = output[0] if isinstance(output, tuple) else output
            seen = [*args, *kwargs.values()][0] if of_input else output
            positions[path] = positions.get(path, 0) + seen.numel() // width_of(module)

        return hook

    handles = []
    for layer in layers:
        match layer.module:
            # Its weights meet each position of what comes in; other layers make each that goes out.
            case nn.modules.conv._ConvTransposeNd():
                hook = remember(layer.path, lambda m: m.in_channels, of_input=True)
            case nn.modules.conv._ConvNd():
                hook = remember(layer.path, lambda m: m.out_channels)
            case nn.Linear():
                hook = remember(layer.path, lambda m: m.out_features)
            case nn.MultiheadAttention():
                hook = remember(layer.path, lambda m: m.embed_dim)
            case _:
                continue
        handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
    try:
        batch = _run_on_meta(model, example_inputs)
    except Exception:  # any model may fail on shapes alone; costs are then not known
        return layers
    finally:
        for handle in handles:
            handle.remove()

    def macs(layer: Layer) -> int | None:
        if layer.weight is None:
            return None
        # The projections inside an attention module see as many positions as it does.
        seen = positions.get(layer.path, positions.get(layer.called))
        if seen is None:
            return None
        weights = 1
        for size in layer.shape:
            weights *= size
        return weights * seen // batch

    return tuple(replace(layer, macs=macs(layer)) for layer in layers)


def _uses(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op == "call_module":
            for name, _ in model.get_submodule(node.target).named_modules(prefix=node.target):
                yield name, node.target
        elif node.op == "get_attr" and isinstance(_attribute(model, node.target), nn.Parameter):
            owner = node.target.rpartition(".")[0]
            yield owner, owner


def _prunable(path: str, module: nn.Module) -> str | None:
    for kind, name in PRUNABLE:
        # Not getattr: a parametrised weight is computed anew, which may move what it is made of.
        if isinstance(module, kind) and module._parameters.get(name) is not None:
            return f"{path}.{name}" if path else name
    return None


def _attribute(model: nn.Module, target: str):
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _run_on_meta(model: nn.Module, example_inputs) -> int:
    def meta(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    state = {n: t.to("meta") for n, t in [*model.named_parameters(), *model.named_buffers()]}
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(model, state, tuple(meta(x) for x in example_inputs))
    finally:
        for module, flag in flags:
            module.training = flag
    return example_inputs[0].shape[0]
