"""Whether a traced model computes what the model does.

In:   a model, its Traced, an example of its inputs.
Out:  the Traced, or another one in which more stays whole, or TraceError: the model fails by
      itself.
Not:  neither is changed; copies run.

fx follows a forward once. What it could not see, or has seen only of this one call, shows as
other numbers here, before an hour of training and not after it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.graph.copies import copy_module
from dcil_dsl.graph.inputs import Inputs, doubled
from dcil_dsl.graph.trace import Traced, TraceError, trace_model
from dcil_dsl.graph.tracer import first_line
from dcil_dsl.graph.watch import WeightWatch
from dcil_dsl.masking.redraw import drawn_apart

TOLERANCE = 1e-4  # relative to the largest output; the same operations rarely need any
MAX_TRIES = 16  # top-level modules that are tried one by one


def compare_with_model(traced: Traced, model: nn.Module, example_inputs) -> Traced:
    """Run both in evaluation and in training mode, with the same random numbers.

    example_inputs  as of trace_model; a batch of one is put twice, as batch norm does not train
                    on one

    Where the numbers differ, the one module next to the root that is to blame stays whole, or all
    of them do, or the model. A model that differs from itself is refused. Nothing is run where
    the model is whole, or on the meta device.
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
    if "" in traced.whole:  # there is nothing to compare, and it may fail as it likes
        for training in (False, True):
            with suppress(Exception):
                _expected(model, inputs, training, written)
        return _noting(traced, written)
    expected = {
        training: _expected(model, inputs, training, written) for training in (False, True)
    }
    return _noting(_made_equal(traced, model, example, inputs, expected), written)


def _made_equal(
    traced: Traced, model: nn.Module, example: Inputs, inputs: Inputs, expected: dict[bool, list]
) -> Traced:
    """The Traced, or another one in which more stays whole."""
    reason = _difference(traced, inputs, expected)
    if reason is None:
        return traced
    for training, outputs in expected.items():
        if not _all_alike(_expected(model, inputs, training, {}), outputs):
            mode = "training" if training else "evaluation"
            reason = f"in {mode} mode it gives other numbers for the same inputs and seed"
            raise TraceError("", type(model).__name__, reason)
    for suspects in _suspects(traced):
        keep = {**traced.whole, **{path: reason for path in suspects}}
        other = trace_model(model, example, keep=keep)
        if "" in other.whole or _difference(other, inputs, expected) is None:
            return other
    return trace_model(model, example, keep={"": reason})


def _noting(traced: Traced, written: dict[str, bool]) -> Traced:
    """The Traced, whose layers say that the forward writes to their weights: no rule may have them.

    A trained weight that is written is refused at once, but for what `max_norm` does: each path
    would write to it, and learn from what the other has left.
    """
    parameters = dict(traced.model.named_parameters(remove_duplicate=False))
    for name, is_other in written.items():
        if is_other and name in parameters and parameters[name].requires_grad:
            path, _, own = name.rpartition(".")
            reason = f"its forward changes the weight `{own}` in place"
            raise TraceError(path, type(traced.model.get_submodule(path)).__name__, reason)
    layers = tuple(
        replace(layer, is_written=any(name in written for name in layer.weights))
        for layer in traced.layers
    )
    return replace(traced, layers=layers)


def _expected(
    model: nn.Module, inputs: Inputs, training: bool, written: dict[str, bool]
) -> list[object]:
    """What the model gives; the weights that its forward writes to are added to `written`."""
    try:
        copied = _in_mode(copy_module(model), training)
        with suppress(Exception), WeightWatch(copied) as watch:
            outputs = _run(copied, inputs)
            written.update(watch.written)
            return outputs
        return _run(_in_mode(copy_module(model), training), inputs)  # it takes no such mode
    except Exception as problem:  # a model may fail in its own way
        mode = "training" if training else "evaluation"
        reason = f"it fails in {mode} mode: {first_line(problem)}"
        raise TraceError("", type(model).__name__, reason) from problem


def _difference(traced: Traced, inputs: Inputs, expected: dict[bool, list]) -> str | None:
    """In what the graphs differ from the model; None where they do not."""
    for training in (False, True):
        mode = "training" if training else "evaluation"
        copied = _in_mode(copy_module(traced.model), training)
        graph = fx.GraphModule(copied, traced.graph(training))
        given = Inputs(traced.arguments.bind(inputs.args, inputs.kwargs))
        try:
            found = _run(graph, given)
        except Exception as problem:  # what was baked in need not even run
            return f"its graph fails in {mode} mode: {first_line(problem)}"
        if not _all_alike(found, expected[training]):
            return f"in {mode} mode its graph gives other numbers than its forward"
    return None


def _suspects(traced: Traced) -> list[tuple[str, ...]]:
    """Sets of modules to keep whole, the smallest first."""
    called = {name.split(".")[0] for layer in traced.layers for name in [layer.path] if name}
    top = [
        name
        for name, module in traced.model.named_children()
        if name in called and name not in traced.whole and any(True for _ in module.children())
    ]
    one_by_one = [(name,) for name in top] if len(top) <= MAX_TRIES else []
    return one_by_one + ([tuple(top)] if len(top) > 1 else [])


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    model.train() if training else model.eval()  # which may return anything
    return model


def _run(model: nn.Module, inputs: Inputs) -> list[object]:
    given = inputs.map(torch.clone)
    with drawn_apart(0), torch.no_grad():
        output = model(*given.args, **given.kwargs)
    return pytree.tree_leaves(output)


def _all_alike(ours: list[object], theirs: list[object]) -> bool:
    return len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _alike(ours: object, theirs: object) -> bool:
    if not isinstance(theirs, Tensor):
        return isinstance(theirs, (bool, int, float, str)) is False or ours == theirs
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        return False
    if theirs.layout != torch.strided:
        return ours.layout == theirs.layout and _alike(ours.to_dense(), theirs.to_dense())
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    bound = TOLERANCE * largest if largest < float("inf") else 0.0
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=bound, equal_nan=True)
