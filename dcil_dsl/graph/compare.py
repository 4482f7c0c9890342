"""Whether a traced model computes what the model does.

In:   a model, its Traced, an example input.
Out:  nothing, or TraceError: the model fails by itself, or its graph gives other numbers.
Not:  neither is changed; copies run.

fx follows a forward once. What it could not see, or has seen only of this one call, shows as
other numbers here, before an hour of training and not after it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.graph.trace import TraceError, Traced

TOLERANCE = 1e-4  # relative to the largest output; the same operations rarely need any


def compare_with_model(traced: Traced, model: nn.Module, example: Tensor) -> None:
    """Run both on two examples, in evaluation and in training mode, with the same random numbers.

    example  one input (1, ...), put twice, as batch norm does not train on one
    """
    first = next(model.parameters(), None)
    inputs = torch.cat([example, example.flip(-1)]).to(example if first is None else first.device)
    own, twin = copy.deepcopy(model), copy.deepcopy(traced.model)
    for training in (False, True):
        mode = "training" if training else "evaluation"
        own.train(training)
        graph = fx.GraphModule(twin, traced.graph(training)).train(training)
        try:
            expected = _run(own, inputs)
        except Exception as problem:  # a model may fail in its own way
            reason = f"it fails in {mode} mode: {str(problem).strip().splitlines()[0]}"
            raise TraceError("", type(model).__name__, reason) from problem
        found = _run(graph, inputs)
        for ours, theirs in zip(found, expected, strict=True):
            if not _alike(ours, theirs):
                reason = f"in {mode} mode its graph gives other numbers than its forward"
                raise TraceError("", type(model).__name__, reason)


def _run(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        output = model(inputs.clone())
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    bound = TOLERANCE * largest if largest < float("inf") else 0.0
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=bound, equal_nan=True)
