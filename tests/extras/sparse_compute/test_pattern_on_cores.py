"""A path whose 2:4 products run on sparse tensor cores gives what the whole computation gives.

The cores are a reference on the CPU that sees two of every four weights (reference_cores.py).
"""

import pytest
import torch
from support.mutual import RECIPE, mutual, two_steps
from support.reference_cores import reference_cores
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import dcil_dsl as dcil
from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.extras.sparse_compute import tensor_cores
from dcil_dsl.extras.sparse_compute.pattern import (
    PatternProduct,
    apply_pattern,
)
from dcil_dsl.extras.sparse_compute.tensor_cores import Cores
from dcil_dsl.masking import units
from dcil_dsl.masking.units import holds_half, remember_half
from dcil_dsl.model import trace_model
from dcil_dsl.model.calls import apply_layer
from dcil_dsl.plan.cost import bound, in_pattern, step_cost, training_cost
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.show import show_plan, show_summary
from dcil_dsl.training.conflicts import check_plan_allows
from dcil_dsl.training.machine import Options

KEPT = "compute = kept"
DCIL = "update kept   by sparse\n  update pruned by dense"
SPARSE = ("first.weight", "mixed.weight")  # whose sides are multiples of 16


class Net(nn.Module):
    """Layers on tokens, whose input is no contiguous matrix; with a bias and without."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.first = nn.Linear(16, 32)
        self.mixed = nn.Linear(32, 48, bias=False)
        self.odd = nn.Linear(48, 24)
        self.last = nn.Linear(24, 8)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2)
        x = self.odd(self.mixed(self.first(x).relu()).relu())
        return self.last(x.mean(1).relu())


def plan_of(sparse, target="2:4", updates=DCIL, precision="fp32"):
    text = RECIPE.format(selector="Linear", target=target, sparse=sparse, dense="")
    text = text.replace(DCIL, updates).replace("= 2ep", f"= 2ep  precision = {precision}")
    traced = trace_model(Net(), (torch.zeros(1, 3, 6, 6),))
    return resolve_recipe(dcil.loads(text), traced, 8)


@pytest.fixture
def calls(monkeypatch):
    """The shapes that the reference was asked for; the check's own products are taken out."""
    made = []
    monkeypatch.setattr(tensor_cores, "CORES", reference_cores(made))
    return made


def a_step(plan, change=None, dtype=torch.float64, autocast=False):
    torch.manual_seed(0)
    dual = dcil.compile(plan, Net().to(dtype)).train()
    torch.manual_seed(1)
    images = torch.randn(5, 3, 6, 6, dtype=dtype).requires_grad_()
    return two_steps(dual, images, torch.arange(5), change, autocast)


STRAIGHT = "update kept, pruned by sparse"  # pruned weights learn from the sparse path, too
BOTH = "update kept by sparse  update pruned by 0.5 * sparse + 0.5 * dense"
TAYLOR = "2:4 { score = taylor schedule = once(at=1 steps) }"


@pytest.mark.parametrize(
    "target, updates",
    [("2:4", DCIL), ("2:4", STRAIGHT), ("2:4", BOTH), (TAYLOR, STRAIGHT), (TAYLOR, DCIL)],
)
def test_outputs_gradients_scores_and_buffers_are_those_of_the_usual_step(target, updates, calls):
    usual, outputs, gradients = a_step(plan_of("", target, updates))
    assert calls == []
    halved, others, found = a_step(plan_of(KEPT, target, updates))
    assert sum("apply_pattern" in line for line in halved.code.splitlines()) == 2
    assert ((80, 32), (48, 32)) in calls
    torch.testing.assert_close(others, outputs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, gradients, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        halved.state_dict(), usual.state_dict(), rtol=1e-12, atol=1e-14, equal_nan=True
    )


def test_pruned_weights_get_their_gradients_of_the_sparse_path(calls):
    dual, _, gradients = a_step(plan_of(KEPT, "2:4", STRAIGHT))
    for name in SPARSE:
        pruned = ~dual.masks[name]
        learns = gradients[name][pruned] != 0  # all but the rows that ReLU has cut off
        assert pruned.float().mean() == 0.5 and learns.float().mean() > 0.8


def test_each_forward_pass_makes_one_product_a_layer_and_evaluation_none(calls):
    dual, _, _ = a_step(plan_of(KEPT))
    rows = [shape for shape in calls if shape[0][0] == 80]
    assert rows == 2 * [((80, 16), (32, 16)), ((80, 32), (48, 32))]
    dual.eval()(torch.zeros(5, 3, 6, 6, dtype=torch.float64))
    assert len([shape for shape in calls if shape[0][0] == 80]) == 4


def test_it_goes_with_checkpointed_activations(calls):
    plan = plan_of(KEPT, "2:4", BOTH)
    usual, _, gradients = a_step(plan)
    less, _, found = a_step(plan, recompute_activations)
    torch.testing.assert_close(found, gradients, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(less.state_dict(), usual.state_dict(), rtol=1e-12, atol=1e-14)


def test_under_autocast_the_product_is_in_its_type_and_gradients_in_the_weights(calls):
    more = dict(dtype=torch.float32, autocast=True)
    _, _, exact = a_step(plan_of("", "2:4", STRAIGHT))
    _, outputs, gradients = a_step(plan_of("", "2:4", STRAIGHT), **more)
    _, others, found = a_step(plan_of(KEPT, "2:4", STRAIGHT), **more)
    assert ((80, 32), (48, 32)) in calls
    for path, output in outputs.items():
        assert others[path].dtype == output.dtype
        torch.testing.assert_close(others[path], output, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients.items():
        assert found[name].dtype == gradient.dtype == torch.float32
        rounding = (gradient - exact[name]).norm()  # of bf16, in whole products
        assert (found[name] - exact[name]).norm() <= 1.5 * rounding + 1e-6, name


def test_before_a_pattern_begins_the_layers_are_computed_whole(calls):
    plan = plan_of(KEPT, "2:4 { schedule = once(at=1ep) }")
    dual = dcil.compile(plan, Net().double()).train()
    for step, products in ((0, 0), (7, 0), (8, 2)):
        calls.clear()
        dual.begin_step(step)
        dual(torch.zeros(5, 3, 6, 6, dtype=torch.float64))
        assert len([shape for shape in calls if shape[0][0] == 80]) == products


def test_a_mask_is_looked_at_once_a_change_and_not_where_it_was_told():
    mask = torch.ones(16, 16, dtype=torch.bool)
    assert not holds_half(mask)
    mask.view(16, 4, 4)[..., :2] = False
    assert holds_half(mask)
    mask.view(16, 4, 4)[3, 2, 0] = True
    assert not holds_half(mask)
    remember_half(mask, True)
    assert holds_half(mask)
    mask.view(16, 4, 4)[3, 2, 0] = True
    assert not holds_half(mask)


def test_a_dual_tells_what_its_masks_hold(monkeypatch):
    dual = dcil.compile(plan_of(KEPT, "2:4 { schedule = once(at=1ep) }"), Net())
    for step, holds in ((0, False), (8, True)):
        dual.refresh(step)
        for name in SPARSE:
            mask = dual.masks[name]
            assert units._known[mask] == (mask._version, holds)
            assert holds_half(mask.clone()) == holds


def layer(**more):
    linear = nn.Linear(16, 32).double()
    mask = torch.zeros(32, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    mask = mask.view(32, 16)
    return linear, {"weight": torch.where(mask, linear.weight, 0.0), "bias": linear.bias}, mask


@pytest.mark.parametrize("shape", [(16,), (3, 16), (0, 16), (2, 3, 16), (2, 0, 16)])
def test_inputs_of_any_number_of_dimensions(shape, calls):
    linear, view, mask = layer()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        apply_pattern(linear, view, mask, x), apply_layer(linear, view, x), rtol=1e-13, atol=1e-15
    )


def test_an_input_that_does_not_fit_is_reported_as_ever(calls):
    linear, view, mask = layer()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        apply_pattern(linear, view, mask, torch.zeros(2, 12, dtype=torch.float64))
    assert not any(why for why in tensor_cores.CORES.known.values())


def test_shapes_alone_are_computed_as_ever_and_nothing_is_learnt_of_the_device_from_them(calls):
    dual = dcil.compile(plan_of(KEPT), Net()).train()
    dual.begin_step(0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert dual(torch.zeros(5, 3, 6, 6))["sparse"].shape == (5, 8)
    assert calls == [] and tensor_cores.CORES.known == {}


def test_a_device_without_numbers_has_no_cores():
    dual = dcil.compile(plan_of(KEPT), Net()).train().to("meta")
    dual.begin_step(0)
    assert dual(torch.zeros(5, 3, 6, 6, device="meta"))["sparse"].shape == (5, 8)


def test_hooks_see_the_layer(calls):
    linear, view, mask = layer()
    seen = []
    linear.register_forward_hook(lambda module, given, y: seen.append(tuple(y.shape)))
    apply_pattern(linear, view, mask, torch.zeros(2, 16, dtype=torch.float64))
    assert seen == [(2, 32)] and calls == []


def test_the_gradients_are_the_derivatives_once_and_twice(monkeypatch):
    monkeypatch.setattr(tensor_cores, "CORES", Cores(lambda *_: "", F.linear))
    generator = torch.Generator().manual_seed(0)
    x, v, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4), (5, 4), (5,))
    )
    assert torch.autograd.gradcheck(PatternProduct.apply, (x, v, b))
    assert torch.autograd.gradgradcheck(PatternProduct.apply, (x, v, b))
    assert torch.autograd.gradcheck(lambda x, v: PatternProduct.apply(x, v, None), (x, v))
    (alone,) = torch.autograd.grad(PatternProduct.apply(x.detach(), v, None).sum(), v)
    torch.testing.assert_close(alone, x.detach().sum((0, 1)).expand(5, 4))


def test_a_kernel_that_fails_in_a_step_spoils_nothing(monkeypatch):
    """It passes its check, and is then no more to be had: what it should have given is dense."""
    reference = reference_cores()

    def multiply(x, w, b):
        if len(x) == 80:
            raise RuntimeError("CUDA error: an internal operation failed")
        return reference.multiply(x, w, b)

    _, outputs, gradients = a_step(plan_of(""))
    monkeypatch.setattr(tensor_cores, "CORES", Cores(lambda *_: "", multiply))
    _, others, found = a_step(plan_of(KEPT))
    torch.testing.assert_close(others, outputs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, gradients, rtol=1e-11, atol=1e-13)
    assert set(tensor_cores.CORES.known.values()) == {
        "its kernel failed: CUDA error: an internal operation failed"
    }


def test_a_compiled_step_is_one_graph_and_computes_whole(calls):
    torch._dynamo.reset()
    plan = plan_of(KEPT)
    check_plan_allows(plan, Options(compile=True))
    dual = dcil.compile(plan, Net()).train()
    dual.begin_step(0)
    x = torch.randn(5, 3, 6, 6)
    compiled = torch.compile(lambda x: dual(x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)["sparse"].shape, torch.Size((5, 8)))
    assert calls == []


def test_patterns_next_to_whole_filters_exclude_compiled_steps():
    plan = plan_of(KEPT, "2:4\nprune first Linear to uniform(50%, granularity=filter(ties=none))")
    assert in_pattern(plan.groups, plan.layers) == ("mixed.weight",)
    assert "computes the kept units alone in 1 of 4 pruned layers" in show_plan(plan)
    with pytest.raises(InputError, match="`compute = kept` of path `sparse` does not go with"):
        check_plan_allows(plan, Options(compile=True))


# -- the plan -------------------------------------------------------------------------------------


def test_half_of_one_of_three_products_is_counted_in_the_layers_that_have_it():
    """stem 16*27 at 16 pixels; at 16 tokens first 512, mixed 1536 and odd 1152; last 192."""
    macs = 16 * 27 * 16, 512 * 16, 1536 * 16, 1152 * 16, 192
    share = 1 - (macs[1] + macs[2]) / sum(macs) / 6
    plan = plan_of(KEPT, precision="bf16")
    assert in_pattern(plan.groups, plan.layers) == SPARSE
    assert step_cost(plan, plan.phases[0]) == pytest.approx(1 + share, abs=1e-12)
    assert training_cost(plan) == pytest.approx(1 + share, abs=1e-12)
    assert training_cost(plan, whole=SPARSE) == training_cost(plan_of("", precision="bf16")) == 2
    one = 1 - macs[2] / sum(macs) / 6
    assert training_cost(plan, whole=SPARSE[:1]) == pytest.approx(1 + one, abs=1e-12)
    assert bound(plan) == "at most" and Plan.from_json(plan.to_json()) == plan


def test_before_the_pattern_begins_and_in_fp32_nothing_is_counted():
    late = training_cost(plan_of(KEPT, "2:4 { schedule = once(at=1ep) }", precision="bf16"))
    always = training_cost(plan_of(KEPT, precision="fp16"))
    assert 2 - late == pytest.approx((2 - always) / 2, abs=1e-12) and always < 2
    assert training_cost(plan_of(KEPT)) == 2


def test_a_plan_says_in_how_many_layers_and_where():
    text = show_plan(plan_of(KEPT, precision="bf16"))
    assert (
        "    multiplies by the 2:4 pattern of 2 of 4 pruned layers on a GPU's sparse tensor "
        "cores,\n    in the forward pass alone; elsewhere they are computed in full, with the same "
        "result\n"
    ) in text
    assert "\n  2.00 where no sparse tensor cores multiply by its 2:4 pattern\n" in text
    assert "\n         2.00 where no sparse" in show_summary(plan_of(KEPT, precision="bf16"))
    assert max(map(len, text.splitlines())) <= 100


def test_a_plan_in_fp32_says_that_the_layers_are_computed_in_full():
    text = show_plan(plan_of(KEPT))
    assert (
        "    computes the 2:4 pattern of 2 of 4 pruned layers in full:\n"
        "    in fp32, and sparse tensor cores take bf16 and fp16\n"
    ) in text
    assert "where no sparse tensor cores" not in text + show_summary(plan_of(KEPT))


class Odd(nn.Module):
    """Of the pruned layers one is called as any is, one has a hook, one is read by hand, one
    is a convolution with a kernel of one, and one holds another class's forward."""

    class Linear(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    def __init__(self):
        super().__init__()
        self.norm, self.point = nn.BatchNorm2d(3), nn.Conv2d(16, 16, 1)
        self.widen = nn.Conv2d(3, 16, 1)
        self.plain, self.hooked = nn.Linear(16, 16), nn.Linear(16, 16)
        self.by_hand, self.own = nn.Linear(16, 16), Odd.Linear(16, 16)
        self.hooked.register_forward_hook(lambda module, given, y: None)

    def forward(self, x):
        x = self.point(self.widen(self.norm(x))).mean((2, 3))
        x = self.hooked(self.plain(x).relu())
        return self.own(F.linear(x, self.by_hand.weight, self.by_hand.bias))


def test_layers_that_are_computed_whole_are_not_counted_as_halved():
    recipe = mutual('Linear, "point"', "2:4", sparse=KEPT)
    traced = trace_model(Odd(), (torch.zeros(1, 3, 4, 4),))
    plan = resolve_recipe(recipe, traced, 8)
    assert in_pattern(plan.groups, plan.layers) == ("plain.weight",)
    assert "the 2:4 pattern of 1 of 5 pruned layers" in show_plan(plan)
    dual = dcil.compile(plan, traced)
    assert sum("apply_pattern" in line for line in dual.code.splitlines()) == 1


def test_another_pattern_than_the_hardwares_is_reported():
    with pytest.raises(RecipeError) as error:
        plan_of(KEPT, "1:4")
    (told,) = error.value.diagnostics
    assert told.code == "E320" and "to 2:4" in told.label and "multiples of 16" in told.help
