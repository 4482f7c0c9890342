"""Whether a traced model computes what the model does, and learns what the model learns.

In:   a model, its Traced, an example of its inputs.
Out:  the Traced, or another one in which more stays opaque, or TraceError: the model fails by
      itself, or does not compute with the weights that it is given.
Not:  neither is changed; copies run.

fx follows a forward once. What it could not see, or has seen only of this one call, shows as
other numbers or other gradients here, before an hour of training and not after it. An opaque
module runs as the paths will run it: with weights given at the call, its own replaced by NaN.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import is_dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.masking.apply import apply_opaque
from dcil_dsl.masking.rng import drawn_apart
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs, doubled
from dcil_dsl.model.trace import Traced, TraceError, trace_model
from dcil_dsl.model.tracer import first_line
from dcil_dsl.model.watch import WeightWatch

TOLERANCE = 1e-4  # relative to the largest output; the same operations rarely need any
# Of a gradient, relative to its largest number, or to FLOOR times the largest of all gradients.
GRADIENT_TOLERANCE, FLOOR = 1e-2, 1e-3
MAX_TRIES = 16  # top-level modules that are tried one by one


class Run(NamedTuple):
    """What a forward gives, and in training mode the gradients of its weights by their names;
    None where there are none, or the backward pass fails, as losses of a recipe may not need all.
    """

    outputs: list[object]
    gradients: dict[str, Tensor] | None = None


def compare_with_model(traced: Traced, model: nn.Module, example_inputs) -> Traced:
    """Run both in evaluation and in training mode, with the same random numbers.

    example_inputs  as of trace_model; a batch of one is put twice, as batch norm does not train
                    on one

    Where the numbers differ, the one module next to the root that is to blame stays opaque, or all
    of them do, or the model. A model that differs from itself is refused, and a module that stays
    whole and differs when its weights are given at the call. Nothing is run on the meta device.
    """
    example = Inputs.of(example_inputs)
    first = next(model.parameters(), None)
    tensors = [*example.tensors(), *([] if first is None else [first])]
    if any(tensor.is_meta for tensor in tensors):
        return traced
    inputs = doubled(example)
    if first is not None:
        inputs = inputs.map(lambda tensor: tensor.to(first.device))
    written: dict[str, bool] = {}
    expected = {training: _expected(model, inputs, training, written) for training in (False, True)}
    _refuse_written(model, written)  # first: comparing such a model would blame something else
    return _noting(_made_equal(traced, model, example, inputs, expected), written)


def _made_equal(
    traced: Traced, model: nn.Module, example: Inputs, inputs: Inputs, expected: dict[bool, Run]
) -> Traced:
    """The Traced, or another one in which more stays opaque."""
    reason = _difference(traced, inputs, expected, traced.opaque)
    if reason is None:
        return traced
    for training, run in expected.items():
        again = _expected(model, inputs, training, {})
        if not _all_alike(again.outputs, run.outputs):
            mode = _mode(training)
            reason = f"in {mode} mode it gives other numbers for the same inputs and seed"
            raise TraceError("", type(model).__name__, reason)
        if not _same_gradients(again.gradients, run.gradients):
            expected[training] = run._replace(gradients=None)  # chance alone moves them as far
    reason = _difference(traced, inputs, expected, traced.opaque)
    if reason is None:
        return traced
    if traced.opaque and _difference(traced, inputs, expected, ()) is None:
        _refuse(traced, inputs, expected, reason)
    for suspects in _suspects(traced):
        keep = {**traced.opaque, **dict.fromkeys(suspects, reason)}
        other = trace_model(model, example, keep=keep)
        if _difference(other, inputs, expected, other.opaque) is None:
            return other
    whole = trace_model(model, example, keep={"": reason})
    again = _difference(whole, inputs, expected, whole.opaque)
    if again is not None:
        _refuse(whole, inputs, expected, again)
    return whole


def _refuse(traced: Traced, inputs: Inputs, expected: dict[bool, Run], reason: str) -> None:
    """TraceError for the module that does not compute with the weights that it is given."""
    differs = (p for p in traced.opaque if _difference(traced, inputs, expected, (p,)) is not None)
    path = next(differs, "")
    raise TraceError(
        path,
        type(traced.model.get_submodule(path)).__name__,
        f"it stays one call, and when it is given its weights at the call, {reason}: its forward, "
        "or a backward pass that computes again, reads the weights of the module itself",
    )


def _refuse_written(model: nn.Module, written: dict[str, bool]) -> None:
    """TraceError for a trained weight that is written, but for what `max_norm` does: each path
    would write to it, and learn from what the other has left.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, is_other in written.items():
        if is_other and name in parameters and parameters[name].requires_grad:
            path, _, own = name.rpartition(".")
            reason = f"its forward changes the weight `{own}` in place"
            raise TraceError(path, type(model.get_submodule(path)).__name__, reason)


def _noting(traced: Traced, written: dict[str, bool]) -> Traced:
    """The Traced; layers whose weights the forward writes say so, and no rule may have them."""
    layers = tuple(
        replace(layer, is_written=any(name in written for name in layer.weights))
        for layer in traced.layers
    )
    return replace(traced, layers=layers)


def _expected(model: nn.Module, inputs: Inputs, training: bool, written: dict[str, bool]) -> Run:
    """What the model gives and learns; the weights that its forward writes to go to `written`."""
    try:
        copy, outputs = _watched(model, inputs, training, written)
    except Exception as problem:  # a model may fail in its own way
        reason = f"it fails in {_mode(training)} mode: {first_line(problem)}"
        raise TraceError("", type(model).__name__, reason) from problem
    try:
        return Run(_detached(outputs), _gradients(copy, outputs) if training else None)
    except Exception:  # an output that no loss will read may have no derivative
        return Run(_detached(outputs))


def _watched(
    model: nn.Module, inputs: Inputs, training: bool, written: dict[str, bool]
) -> tuple[nn.Module, list[object]]:
    copy = _in_mode(copy_module(model), training)
    with suppress(Exception), WeightWatch(copy) as watch:
        outputs = _forward(copy, inputs, training)
        written.update(watch.written)
        return copy, outputs
    copy = _in_mode(copy_module(model), training)  # it takes no such mode, or fails by itself
    return copy, _forward(copy, inputs, training)


def _difference(
    traced: Traced, inputs: Inputs, expected: dict[bool, Run], given: Collection[str]
) -> str | None:
    """In what the graphs differ from the model; None where they do not.

    given  the modules kept opaque that get their weights at the call
    """
    for training in (False, True):
        mode, wanted = _mode(training), expected[training]
        model = _in_mode(copy_module(traced.model), training)
        graph = _AsPath(model, traced.graph(training), given)
        placed = inputs
        if traced.arguments.live is not None:
            placed = Inputs(traced.arguments.bind(inputs.args, inputs.kwargs))
        try:
            outputs = _forward(graph, placed, training)
            learns = training and wanted.gradients is not None
            found = Run(_detached(outputs), _gradients(model, outputs) if learns else None)
        except Exception as problem:  # what was baked in need not even run
            return f"its graph fails in {mode} mode: {first_line(problem)}"
        if not _all_alike(found.outputs, wanted.outputs):
            return f"in {mode} mode its graph gives other numbers than its forward"
        if not _same_gradients(found.gradients, wanted.gradients):
            return f"in {mode} mode its graph gives other gradients than its forward"
    return None


class _AsPath(fx.Interpreter):
    """Runs a graph, with the modules `given` as a path of a Dual has them: apart from their own
    weights, of which every number is NaN, so that none of them can be read unseen."""

    def __init__(self, model: nn.Module, graph: fx.Graph, given: Collection[str]):
        super().__init__(model, graph=graph)
        self.apart = {path: _without_numbers(model.get_submodule(path)) for path in given}

    def __call__(self, *args, **kwargs):
        if "" in self.apart:
            return self._call("", args, kwargs)
        if self.graph.find_nodes(op="placeholder", target="**kwargs"):
            return self.module(*args, **kwargs)
        return self.run(*args)

    def run_node(self, node: fx.Node):
        path = node.meta.get("opaque")
        if path not in self.apart:
            return super().run_node(node)
        return self._call(path, *self.fetch_args_kwargs_from_env(node))

    def _call(self, path: str, args, kwargs):
        part = self.module.get_submodule(path)
        return apply_opaque(self.apart[path], _tensors(part), (), args, kwargs, "sparse")


def _without_numbers(module: nn.Module) -> nn.Module:
    copy = copy_module(module)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.fill_(float("nan"))
    return copy


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those of a module with two names under one of them."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


def _suspects(traced: Traced) -> list[tuple[str, ...]]:
    """Sets of modules to keep whole, the smallest first."""
    called = {name.split(".")[0] for layer in traced.layers for name in [layer.path] if name}
    top = [
        name
        for name, module in traced.model.named_children()
        if name in called and name not in traced.opaque and any(True for _ in module.children())
    ]
    one_by_one = [(name,) for name in top] if len(top) <= MAX_TRIES else []
    return one_by_one + ([tuple(top)] if len(top) > 1 else [])


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    model.train() if training else model.eval()  # which may return anything
    return model


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _forward(model, inputs: Inputs, learns: bool) -> list[object]:
    given = inputs.map(torch.clone)
    with drawn_apart(0), torch.set_grad_enabled(learns):
        output = model(*given.args, **given.kwargs)
    opened = vars(output) if is_dataclass(output) and not isinstance(output, dict) else output
    return pytree.tree_leaves(opened)


def _detached(outputs: list[object]) -> list[object]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in outputs]


def _gradients(model: nn.Module, outputs: list[object]) -> dict[str, Tensor] | None:
    """What each weight learns if the outputs are to move in a direction drawn for each."""
    chance = torch.Generator().manual_seed(0)
    ends = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    if not ends:
        return None
    ways = [torch.randn(t.shape, generator=chance).to(t.device, t.dtype) for t in ends]
    torch.autograd.backward(ends, ways)
    return {
        name: torch.zeros_like(weight) if weight.grad is None else _dense(weight.grad)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _dense(gradient: Tensor) -> Tensor:
    """A gradient as an embedding with `sparse=True` gives it, with its zeros."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _same_gradients(ours: dict[str, Tensor] | None, theirs: dict[str, Tensor] | None) -> bool:
    if ours is None or theirs is None:
        return theirs is None
    norms = [g.abs().max().item() for g in theirs.values() if g.numel()]
    floor = FLOOR * max((n for n in norms if n < float("inf")), default=0.0)
    for name, gradient in theirs.items():
        finite = gradient.nan_to_num(0.0, 0.0, 0.0).abs()
        bound = GRADIENT_TOLERANCE * max(finite.max().item() if finite.numel() else 0.0, floor)
        if not torch.allclose(ours[name], gradient, rtol=0.0, atol=bound, equal_nan=True):
            return False
    return True


def _all_alike(ours: list[object], theirs: list[object]) -> bool:
    return len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _alike(ours: object, theirs: object) -> bool:
    if not isinstance(theirs, Tensor):
        return isinstance(theirs, (bool, int, float, str)) is False or ours == theirs
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    bound = TOLERANCE * largest if largest < float("inf") else 0.0
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=bound, equal_nan=True)
