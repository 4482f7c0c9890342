"""Large models: work grows with the nodes, and weights on the meta device are not made."""

import sys

import torch
from support.deep_chain import RECIPE, Chain
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.resolve import resolve_recipe


def compiled(model):
    traced = trace_model(model)
    return compile_plan(resolve_recipe(loads(RECIPE), traced, steps_per_epoch=10), traced)


def calls_to_compile(blocks):
    """How many Python functions are called from model to dual graph: a clock that never varies."""
    model, calls = Chain(blocks, width=4), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        compiled(model)
    finally:
        sys.setprofile(None)
    return calls


def test_four_times_the_nodes_are_at_most_about_four_times_the_work():
    calls_to_compile(2)  # what is imported or cached at the first use
    few, many = calls_to_compile(60), calls_to_compile(240)
    assert many / few < 4.2


def test_a_chain_longer_than_the_stack_is_deep_is_compiled():
    dual = compiled(Chain(1, width=4, before=3 * sys.getrecursionlimit()))
    dual.begin_step(0)
    assert dual(torch.ones(1, 4)).keys() == {"sparse", "dense"}


class Allocations(TorchDispatchMode):
    """Counts the elements of tensors that come into being anywhere but on the meta device."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.elements += tensor.numel()
        return result


def test_a_model_of_a_billion_weights_is_compiled_without_making_any_of_them():
    with torch.device("meta"):
        model = Chain(16, width=8192)
    assert sum(p.numel() for p in model.parameters()) > 1e9
    with Allocations() as made:
        dual = compiled(model)
    tensors = [*dual.parameters(), *dual.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert sum(mask.numel() for mask in dual.masks.values()) == 16 * 8192**2
    assert made.elements < 100_000
