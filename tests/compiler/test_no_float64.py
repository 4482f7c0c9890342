"""Devices without float64, which are Apple's GPUs: a stand-in for them on this machine.

Masks are computed on the CPU there; what a step computes on the device is at most float32. Here the
CPU is said to have no float64.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import dcil_dsl as dcil
from dcil_dsl.compiler import dual as duals
from dcil_dsl.model import side_effects
from dcil_dsl.tasks import TASKS
from dcil_dsl.training.losses import sums_of
from dcil_dsl.words.tensors import widest
from dcil_dsl.words.tensors.numbers import sent

RECIPE = """language 1
prune Linear to 80% {
  schedule = cubic(0ep..3ep)
  {more}
}
pruning { refresh = 2 steps }
mix {
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  private BatchNorm1d
  loss cross_entropy(sparse)
  loss kl(student=sparse, teacher=dense)
  deploy sparse
}
train { epochs = 4ep  optimizer = sgd(lr=0.1, momentum=0.9) }
"""


class NoFloat64(TorchDispatchMode):
    """As torch on mps: no result is float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(made):
            is_tensor = isinstance(leaf, torch.Tensor)
            assert not is_tensor or leaf.dtype != torch.float64, f"{function} makes float64"
        return made


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))


def trained(more):
    pruner = dcil.Pruner(RECIPE.replace("{more}", more), net(), steps_per_epoch=5)
    optimizer = pruner.make_optimizer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(8, 6, generator=generator)
        target = torch.randint(5, (8,), generator=generator)
        loss = pruner.step_loss(x, target=target)
        optimizer.zero_grad()
        loss.backward()
        pruner.step(optimizer)
    return pruner.dual.state_dict()


@pytest.mark.parametrize(
    "more",
    ["", "score = taylor(average=0.9)", "score = random", "regrow = gradient(30%)"],
)
def test_masks_that_a_copy_on_the_cpu_computes_are_the_same(more, monkeypatch):
    if "regrow" in more:
        more = "schedule = constant()\n  regrow = gradient(30%)"
        recipe = RECIPE.replace("schedule = cubic(0ep..3ep)\n  ", "")
        monkeypatch.setattr(f"{__name__}.RECIPE", recipe)
    expected = trained(more)
    monkeypatch.setattr(duals, "has_float64", lambda device: False)
    found = trained(more)
    assert list(found) == list(expected)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_what_a_step_computes_on_the_device_is_not_float64(monkeypatch):
    plan = dcil.resolve(RECIPE.replace("{more}", ""), net(), steps_per_epoch=5)
    monkeypatch.setattr(widest, "has_float64", lambda device: False)
    drawn = torch.rand(3, dtype=torch.float64)
    logits, classes = torch.randn(8, 5), torch.zeros(8, dtype=torch.long)
    outputs = {"sparse": logits, "dense": logits.clone()}
    with NoFloat64():
        total = dcil.loss(plan, outputs, classes, 0)
        values = dict.fromkeys(range(len(plan.losses)), total)
        sums = sums_of(plan, TASKS["classification"], outputs, classes, 8, values)
        numbers = torch.randn(8, 1)
        score = TASKS["regression"].score(numbers, numbers + 1, 8)
        brought = sent(drawn, torch.device("cpu"))
    assert {sums.dtype, score.dtype, brought.dtype} == {torch.float32}
    assert float(score) == pytest.approx(8) and len(sums) == 4


def test_the_generator_of_the_device_is_put_back_with_the_others(monkeypatch):
    place = SimpleNamespace(state=torch.tensor([1]))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: place.state)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: setattr(place, "state", state))
    before = side_effects.random_state()
    place.state = torch.tensor([2])
    side_effects.draw_again(before)
    assert int(place.state) == 1
