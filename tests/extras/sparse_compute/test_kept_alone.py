"""A path that computes kept filters alone gives what the whole computation gives."""

import pytest
import torch
from support.mutual import mutual, two_steps
from torch import nn
from torch.nn import functional as F

import dcil_dsl as dcil
from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sparse_compute.kept import apply_kept, kept_along
from dcil_dsl.model import trace_model
from dcil_dsl.model.calls import apply_layer
from dcil_dsl.plan.cost import bound, left_out, step_cost, training_cost
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.show import show_plan
from dcil_dsl.training.conflicts import check_plan_allows
from dcil_dsl.training.machine import Options

KEPT = "compute = kept"


class Net(nn.Module):
    """With a bias, without, in groups, with a stride, a matrix; channels and pixels apart."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 12, 3, stride=2, bias=False, padding_mode="circular", padding=1)
        self.mixed = nn.Linear(12, 10)
        self.last = nn.Linear(10, 6)

    def forward(self, x):
        x = self.grouped(self.norm(self.first(x)).relu()).relu()
        x = self.second(x).mean((2, 3))
        return self.last(self.mixed(x).relu())


def plan_of(compute, target="uniform(50%, granularity=filter(ties=none))"):
    traced = trace_model(Net(), (torch.zeros(1, 3, 9, 7),))
    return resolve_recipe(mutual("Conv2d, Linear", target, sparse=compute), traced, 8)


def a_step(plan, layout, change=None):
    torch.manual_seed(0)
    dual = dcil.compile(plan, Net().double()).train().to(memory_format=layout)
    torch.manual_seed(1)
    images = torch.randn(5, 3, 9, 7, dtype=torch.float64).to(memory_format=layout)
    return two_steps(dual, images.requires_grad_(), torch.arange(5), change)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("unit", ["filter", "channel"])
def test_outputs_routed_gradients_and_buffers_are_those_of_the_usual_step(unit, layout):
    target = f"global(60%, granularity={unit})"
    usual, outputs, gradients = a_step(plan_of("", target), layout)
    smaller, others, found = a_step(plan_of(KEPT, target), layout)
    assert sum("apply_kept" in line for line in smaller.code.splitlines()) == 4
    torch.testing.assert_close(others, outputs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, gradients, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        smaller.state_dict(), usual.state_dict(), rtol=1e-12, atol=1e-14, equal_nan=True
    )


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 5, 5)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kept", [(), (1,), (0, 1, 2)])
def test_none_kept_and_all_kept_are_computed_as_ever(shape, axis, kept):
    conv = nn.Conv2d(3, 3, 3).double()
    mask = torch.zeros(3, 3, 3, 3, dtype=torch.bool)
    mask.select(axis, 0)[:] = 0 in kept
    for place in kept:
        mask.select(axis, place)[:] = True
    view = {"weight": torch.where(mask, conv.weight, 0.0), "bias": conv.bias}
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        apply_kept(conv, view, mask, axis, x), apply_layer(conv, view, x), rtol=1e-13, atol=1e-15
    )


def test_a_mask_that_moves_is_looked_at_again_and_one_that_stands_still_is_not():
    mask = torch.ones(3, 2, dtype=torch.bool)
    before = kept_along(mask, 0)
    assert kept_along(mask, 0) is before and before.tolist() == [0, 1, 2]
    mask.copy_(torch.tensor([[True, False], [False, False], [True, True]]))
    assert kept_along(mask, 0).tolist() == [0, 2]


def test_hooks_see_the_whole_layer():
    seen, (conv, x) = [], (nn.Conv2d(3, 4, 1), torch.randn(1, 3, 2, 2))
    conv.register_forward_hook(lambda module, given, y: seen.append(tuple(y.shape)))
    mask = torch.zeros(4, 3, 1, 1, dtype=torch.bool)
    mask[0] = True
    apply_kept(conv, {"weight": conv.weight, "bias": conv.bias}, mask, 0, x)
    assert seen == [(1, 4, 2, 2)]


def test_it_goes_with_checkpointed_activations():
    plan = plan_of(KEPT, "global(60%, granularity=filter(ties=none))")
    usual, _, gradients = a_step(plan, torch.contiguous_format)
    less, _, found = a_step(plan, torch.contiguous_format, recompute_activations)
    torch.testing.assert_close(found, gradients, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(less.state_dict(), usual.state_dict(), rtol=1e-12, atol=1e-14)


def test_it_does_not_go_with_compiled_steps():
    with pytest.raises(InputError, match="`compute = kept` of path `sparse` does not go with"):
        check_plan_allows(plan_of(KEPT), Options(compile=True))


def test_the_arithmetic_that_is_left_out_is_counted():
    """first 8*3*9 at 63 pixels, grouped 8*4*9 at 63, second 12*8*9 at 20, matrices 120 and 60.

    Half of the filters leave half of all of these but of the grouped one.
    """
    macs = 8 * 3 * 9 * 63, 8 * 4 * 9 * 63, 12 * 8 * 9 * 20, 120, 60
    plan = plan_of(KEPT)
    share = 1 - 0.5 * (sum(macs) - macs[1]) / sum(macs)
    assert step_cost(plan, plan.phases[0]) == pytest.approx(1 + share, abs=1e-12)
    assert training_cost(plan) == pytest.approx(1 + share, abs=1e-12)
    assert bound(plan) == "at most" and training_cost(plan_of("")) == 2.0
    assert bound(plan_of(KEPT, "global(50%, granularity=filter(ties=none))")) == "about"


class Odd(nn.Module):
    """Of four pruned layers one is called as any is, one has a hook, one is of a class with a
    forward of its own, and the weight of one is read by hand, or it is called too."""

    class Linear(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    def __init__(self, reads):
        super().__init__()
        self.reads, self.norm = reads, nn.BatchNorm2d(3)
        self.plain, self.hooked = nn.Linear(6, 6), nn.Linear(6, 6)
        self.by_hand, self.own = nn.Linear(6, 6), Odd.Linear(6, 6)
        self.hooked.register_forward_hook(lambda module, given, y: None)

    def forward(self, x):
        x = self.hooked(self.plain(self.norm(x).mean((2, 3)).repeat(1, 2)).relu())
        if self.reads:
            return self.own(F.linear(x, self.by_hand.weight, self.by_hand.bias))
        return self.own(self.by_hand(x))


# What a weight that is read by hand costs is not known: then the whole is counted.
@pytest.mark.parametrize("reads, out, cost", [(False, 2, 1 + 3 / 4), (True, 1, 2.0)])
def test_layers_that_are_computed_whole_are_not_counted_as_left_out(reads, out, cost):
    traced = trace_model(Odd(reads), (torch.zeros(1, 3, 4, 4),))
    recipe = mutual("Linear", "uniform(50%, granularity=filter(ties=none))", sparse=KEPT)
    plan = resolve_recipe(recipe, traced, 8)
    wanted = ("plain.weight", "by_hand.weight")[:out]
    assert left_out(plan.groups, plan.layers) == dict.fromkeys(wanted, 0)
    assert f"computes the kept units alone in {out} of 4 pruned layers" in show_plan(plan)
    assert training_cost(plan) == pytest.approx(cost)
    dual = dcil.compile(plan, traced)
    assert sum("apply_kept" in line for line in dual.code.splitlines()) == out
    assert Plan.from_json(plan.to_json()) == plan


def test_a_ramp_is_counted_as_it_rises():
    """Of 8, 12, 10 and 6 filters those that stay, in each of 16 steps; 60 % are gone at step 8."""
    ramp = "uniform(60%, granularity=filter(ties=none)) "
    ramp += "{ schedule = linear(0ep..1ep) refresh = 1 steps }"
    macs = {8: 8 * 3 * 9 * 63, 12: 12 * 8 * 9 * 20, 10: 120, 6: 60}
    grouped = 8 * 4 * 9 * 63
    shares = []
    for step in range(16):
        sparsity = 0.6 * min(step / 8, 1)
        done = sum(macs[n] * int(n * (1 - sparsity) + 1e-9) / n for n in macs)
        shares.append((done + grouped) / (sum(macs.values()) + grouped))
    assert training_cost(plan_of(KEPT, ramp)) == pytest.approx(1 + sum(shares) / 16, abs=1e-12)
