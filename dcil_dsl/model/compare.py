"""Compare the outputs and gradients of a traced model with those of the model itself.

In:   a model, its Traced, example inputs.
Out:  the Traced, or one with more opaque modules, or TraceError: the model itself fails, or does
      not compute with the weights of the call.
Not:  copies run; the model and the Traced are not changed.

fx follows a forward once. Whatever it could not see, or saw only in this one call, shows here as
different numbers or gradients, before the training and not after it. An opaque module runs as the
paths run it: with the weights of the call, its own replaced by NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.model.calls import apply_opaque
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs, doubled
from dcil_dsl.model.side_effects import (
    CONTAINERS,
    SIMPLE,
    Attributes,
    WeightWatch,
    drawn_apart,
    same_content,
)
from dcil_dsl.model.trace import Traced, TraceError, trace_model
from dcil_dsl.model.tracer import first_line

TOLERANCE = 1e-4  # relative to the largest output; equal operations rarely need it
# Of a gradient: relative to its largest number, or to FLOOR times that of all gradients.
GRADIENT_TOLERANCE, FLOOR = 1e-2, 1e-3
MAX_TRIES = 16  # top-level modules that are kept opaque one by one


class Computed(NamedTuple):
    """The outputs of a forward, and in training mode the gradients of its weights by name.

    gradients  None: not computed, or the backward pass fails, which a recipe's loss need not do
    """

    outputs: list[object]
    gradients: dict[str, Tensor] | None = None


def compare_with_model(traced: Traced, model: nn.Module, example_inputs: object) -> Traced:
    """Run both in evaluation and in training mode, with the same random numbers.

    example_inputs  as of trace_model; a batch of one is doubled, because batch norm does not
                    train on one example

    If the numbers differ, the top-level module that causes it becomes opaque, or all of them, or
    the model. TraceError for a model whose two runs differ, and for an opaque module that differs
    when its weights are given at the call. A model on the meta device is not compared.
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
    _refuse_written(model, written)  # first: a comparison would blame another cause
    stale = [path for path in traced.memos if not _keeps_memo(traced, model, inputs, path)]
    if stale:
        reason = "what its forward keeps for later calls is not what it would compute in each"
        traced = trace_model(model, example, keep={**traced.opaque, **dict.fromkeys(stale, reason)})
    return _noting(_made_equal(traced, model, example, inputs, expected), written)


def _keeps_memo(traced: Traced, model: nn.Module, inputs: Inputs, path: str) -> bool:
    """Whether a memo holds the values that each call would compute: a second call gives the same
    outputs and does not change it, and a memo of weights does not outlive training mode."""
    copy = _in_mode(copy_module(model), False)
    part = copy.get_submodule(path)
    fresh = Attributes(part)
    first = _detached(_forward(copy, inputs, False))
    kept = Attributes(part)
    again = _detached(_forward(copy, inputs, False))
    if kept.changes() or not _all_alike(again, first):
        return False
    if not traced.memos[path]:
        return True
    _in_mode(_in_mode(copy, True), False)
    return not any(_outlives(fresh, vars(part), name) for name in kept.values)


def _outlives(fresh: Attributes, now: dict[str, object], name: str) -> bool:
    """Whether an attribute has another value than at the start."""
    old, new = fresh.values.get(name), now.get(name)
    if type(old) in CONTAINERS:
        return type(new) is not type(old) or not same_content(new, fresh.content(name))
    return new is not old and not (isinstance(new, SIMPLE) and new == old)


def _made_equal(
    traced: Traced,
    model: nn.Module,
    example: Inputs,
    inputs: Inputs,
    expected: dict[bool, Computed],
) -> Traced:
    """The Traced, or one with more opaque modules."""
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
            expected[training] = run._replace(gradients=None)  # not reproducible
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
    opaque = trace_model(model, example, keep={"": reason})
    still = _difference(opaque, inputs, expected, opaque.opaque)
    if still is not None:
        _refuse(opaque, inputs, expected, still)
    return opaque


def _refuse(traced: Traced, inputs: Inputs, expected: dict[bool, Computed], reason: str) -> None:
    """TraceError for the module that does not compute with the weights of the call."""
    differs = (p for p in traced.opaque if _difference(traced, inputs, expected, (p,)) is not None)
    path = next(differs, "")
    raise TraceError(
        path,
        type(traced.model.get_submodule(path)).__name__,
        f"it is opaque, and with the weights given at the call, {reason}: its forward, or a "
        "backward pass that recomputes it, reads the weights of the module itself",
    )


def _refuse_written(model: nn.Module, written: dict[str, bool]) -> None:
    """TraceError for a trained weight that the forward writes to, except for `max_norm`: each path
    would write to it, and learn from the writes of the other.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, is_other in written.items():
        if is_other and name in parameters and parameters[name].requires_grad:
            path, _, own = name.rpartition(".")
            reason = f"its forward changes the weight `{own}` in place"
            raise TraceError(path, type(model.get_submodule(path)).__name__, reason)


def _noting(traced: Traced, written: dict[str, bool]) -> Traced:
    """The Traced, with the layers marked whose weights the forward writes to: no rule may prune
    them."""
    layers = tuple(
        replace(layer, is_written=any(name in written for name in layer.weights))
        for layer in traced.layers
    )
    return replace(traced, layers=layers)


def _expected(
    model: nn.Module, inputs: Inputs, training: bool, written: dict[str, bool]
) -> Computed:
    """The outputs and gradients of the model; adds the weights that it writes to, to `written`."""
    try:
        copy, outputs = _watched(model, inputs, training, written)
    except Exception as problem:  # a model may raise anything
        reason = f"it fails in {_mode(training)} mode: {first_line(problem)}"
        raise TraceError("", type(model).__name__, reason) from problem
    try:
        return Computed(_detached(outputs), _gradients(copy, outputs) if training else None)
    except Exception:  # an output that no loss reads may have no derivative
        return Computed(_detached(outputs))


def _watched(
    model: nn.Module, inputs: Inputs, training: bool, written: dict[str, bool]
) -> tuple[nn.Module, list[object]]:
    copy = _in_mode(copy_module(model), training)
    with suppress(Exception), WeightWatch(copy) as watch:
        outputs = _forward(copy, inputs, training)
        written.update(watch.written)
        return copy, outputs
    copy = _in_mode(copy_module(model), training)  # it fails in such a mode, or anyway
    return copy, _forward(copy, inputs, training)


def _difference(
    traced: Traced, inputs: Inputs, expected: dict[bool, Computed], given: Collection[str]
) -> str | None:
    """How the graphs differ from the model; None if they do not.

    given  the opaque modules that get their weights at the call
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
            found = Computed(_detached(outputs), _gradients(model, outputs) if learns else None)
        except Exception as problem:  # the graph may not run at all
            return f"its graph fails in {mode} mode: {first_line(problem)}"
        if not _all_alike(found.outputs, wanted.outputs):
            return f"in {mode} mode its graph gives other numbers than its forward"
        if not _same_gradients(found.gradients, wanted.gradients):
            return f"in {mode} mode its graph gives other gradients than its forward"
    return None


class _AsPath(fx.Interpreter):
    """Runs a graph with the modules `given` as in a path of a Dual: with the weights of the call.
    Their own weights are NaN, so that reading them shows."""

    def __init__(self, model: nn.Module, graph: fx.Graph, given: Collection[str]):
        super().__init__(model, graph=graph)
        self.apart = {path: _without_numbers(model.get_submodule(path)) for path in given}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "" in self.apart:
            return self._call("", args, kwargs)
        if self.graph.find_nodes(op="placeholder", target="**kwargs"):
            return self.module(*args, **kwargs)
        return self.run(*args)

    def run_node(self, node: fx.Node) -> Any:
        path = node.meta.get("opaque")
        if path not in self.apart:
            return super().run_node(node)
        return self._call(path, *self.fetch_args_kwargs_from_env(node))

    def _call(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = {  # no parameters: a path has views of weights
            name: tensor.view_as(tensor) if tensor.requires_grad else tensor
            for name, tensor in _tensors(self.module.get_submodule(path)).items()
        }
        return apply_opaque(self.apart[path], tensors, (), args, kwargs, "sparse")


def _without_numbers(module: nn.Module) -> nn.Module:
    copy = copy_module(module)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.fill_(float("nan"))
    return copy


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; of a module with two names, under one of them."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


def _suspects(traced: Traced) -> list[tuple[str, ...]]:
    """Sets of modules to keep opaque, the smallest first."""
    called = {name.split(".")[0] for layer in traced.layers for name in [layer.path] if name}
    top = [
        name
        for name, module in traced.model.named_children()
        if name in called and name not in traced.opaque and any(True for _ in module.children())
    ]
    one_by_one = [(name,) for name in top] if len(top) <= MAX_TRIES else []
    return one_by_one + ([tuple(top)] if len(top) > 1 else [])


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    model.train() if training else model.eval()  # an override may return anything
    return model


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _forward(model: nn.Module | _AsPath, inputs: Inputs, learns: bool) -> list[object]:
    given = inputs.map(torch.clone)
    keeper = model.module if isinstance(model, _AsPath) else model
    with drawn_apart(0, keeper), torch.set_grad_enabled(learns):
        output = model(*given.args, **given.kwargs)
    return list(_leaves(output, set()))


def _leaves(value: object, seen: set[int]) -> Iterator[object]:
    """What an output holds, in the attributes of objects too, each of which counts once."""
    for leaf in pytree.tree_leaves(value):
        is_closed = isinstance(leaf, (Tensor, nn.Module, type)) or not hasattr(leaf, "__dict__")
        if is_closed or callable(leaf):
            yield leaf
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _leaves(vars(leaf), seen)


def _detached(outputs: list[object]) -> list[object]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in outputs]


def _gradients(model: nn.Module, outputs: list[object]) -> dict[str, Tensor] | None:
    """The gradients of the weights for random gradients of the outputs; None without a graph."""
    generator = torch.Generator().manual_seed(0)
    ends = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    if not ends:
        return None
    directions = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in ends]
    torch.autograd.backward(ends, directions)
    return {
        name: torch.zeros_like(weight) if weight.grad is None else _dense(weight.grad)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _dense(gradient: Tensor) -> Tensor:
    """A gradient as a dense tensor; that of an embedding with `sparse=True` is sparse."""
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
