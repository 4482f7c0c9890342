"""Rules between gradual pruning and straight-through gradients: which pruned weights follow which
gradient, and when. In float64 against the rule written plainly, and in the shipped recipes."""

import pytest
import torch
from support.plainly import gradients, largest, sgd, soft_views
from support.two_layers import KEEP, assert_same, batches, ours, state

from dcil_dsl.words.views import Soft, SoftThreshold

SOFT = "prune Linear to global(75%) { refresh = 1 step }"


def assert_follows(mix, share, rule=SOFT, view=soft_views, reserve=0):
    """The recipe's pruned weights follow share(step) of the gradient; the best `reserve` of them
    all of it, and the others none."""
    dual = ours(rule, mix + "  loss cross_entropy(sparse)  deploy sparse")
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        masks, wide = largest(weights, KEEP), largest(weights, KEEP + reserve)
        grads = gradients(x, y, view(weights, masks))
        follows = [m.double() + share(step) * (~m).double() for m in masks]
        if reserve:
            follows = [w.double() for w in wide]
        sgd(weights, velocities, [g * f for g, f in zip(grads, follows)])
    assert_same(dual, weights)


def test_feather_sees_a_root_of_cubes_and_halves_the_way_back():
    def cubes(weights, masks):
        return soft_views(weights, masks, power=3, rescale=False)

    view = "soft_threshold(power=3, rescale=false)"
    mix = f"path sparse = {view}  update kept by sparse  update pruned by 0.5 * sparse"
    assert_follows(mix, lambda step: 0.5, view=cubes)


def test_half_of_the_feedback_reaches_pruned_weights():
    mix = "path sparse = soft_threshold()  update kept by sparse  update pruned by 0.5 * sparse"
    assert_follows(mix, lambda step: 0.5)


def test_feedback_fades_in_steps():
    mix = """path sparse = soft_threshold()  update kept by sparse
             update pruned by sparse       until 25% run
             update pruned by 0.3 * sparse from 25% run until 50% run
             update pruned by 0 * sparse   from 50% run"""
    assert_follows(mix, lambda step: 1.0 if step < 3 else 0.3 if step < 6 else 0.0)


def test_a_reserve_alone_gets_feedback_under_a_soft_threshold():
    mix = """path sparse = soft_threshold()  update kept, reserve by sparse
             update pruned by 0 * sparse"""
    rule = SOFT.replace("}", " reserve = 10% }")
    assert_follows(mix, lambda step: 0.0, rule=rule, reserve=14)


def test_a_soft_threshold_without_feedback_is_the_fourth_cell():
    mix = "path sparse = soft_threshold()  update kept by sparse  update pruned by 0 * sparse"
    assert_follows(mix, lambda step: 0.0)


def test_a_dense_path_takes_over_the_feedback_and_hands_it_back():
    dual = ours(
        SOFT,
        """path sparse = soft_threshold()  path dense = full { every = 2 steps }
           update kept   by sparse
           update pruned by sparse until 4 steps
           update pruned by dense from 4 steps until 8 steps
           update pruned by 0 * sparse from 8 steps
           loss cross_entropy(sparse)  loss cross_entropy(dense) until 8 steps  deploy sparse""",
    )
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        masks = largest(weights, KEEP)
        own = gradients(x, y, soft_views(weights, masks))
        elsewhere = [torch.zeros_like(w) for w in weights]
        if step < 4:
            elsewhere = own
        elif step < 8 and step % 2 == 0:
            elsewhere = gradients(x, y, weights)
        sgd(weights, velocities, [torch.where(m, a, b) for m, a, b in zip(masks, own, elsewhere)])
    assert_same(dual, weights)


def test_in_a_burst_the_kept_weights_stand_still_but_for_decay():
    """The momentum of kept weights is forgotten before a burst, that of pruned ones after it."""
    dual = ours(
        "prune Linear to global(75%) { refresh = 4 steps }",
        """path sparse = masked  path dense = full
           update kept by sparse until 4 steps
           update pruned by dense from 4 steps until 8 steps
           update kept by sparse from 8 steps
           loss cross_entropy(sparse) until 4 steps
           loss cross_entropy(dense) from 4 steps until 8 steps
           loss cross_entropy(sparse) from 8 steps
           deploy sparse""",
        train="reset = [4 steps, 8 steps]",
    )
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        if step % 4 == 0:
            masks = largest(weights, KEEP)
        if step in (4, 8):
            for v in velocities:
                v.zero_()
        explores = 4 <= step < 8
        seen = weights if explores else [w * m for w, m in zip(weights, masks)]
        grads = gradients(x, y, seen)
        sgd(weights, velocities, [g * (~m if explores else m) for g, m in zip(grads, masks)])
    assert_same(dual, weights)


def test_a_large_power_is_a_hard_threshold():
    weight, mask = torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), torch.tensor([[True, False, True, False]])
    view, soft = SoftThreshold(power=60.0, rescale=False), Soft(torch.tensor(1.0), torch.ones(1, 1))
    seen = view.of(weight, mask, soft)
    assert torch.allclose(seen, torch.tensor([[-3.0, 0.0, 2.0, 0.0]]))


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_view_of_tiny_weights_is_finite_in_half_precision(power):
    weight = torch.tensor([1e-7, -3e-7, 0.0], dtype=torch.float16)
    mask = torch.tensor([False, True, False])
    soft = Soft(torch.tensor(1e-7, dtype=torch.float16), torch.ones(1))
    seen = SoftThreshold(power=power).of(weight, mask, soft)
    assert seen.isfinite().all() and seen[1] < 0
