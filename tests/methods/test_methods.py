"""Each method's recipe takes the steps that its paper writes down: in float64, to rounding."""

import pytest
import torch
from support.plainly import (
    cosine_share,
    drop_and_grow,
    gradients,
    largest,
    sgd,
    soft_views,
    two_of_four,
)
from support.two_layers import (
    KEEP,
    KEPT,
    STEPS,
    STRAIGHT,
    assert_same,
    batches,
    ours,
    recipe_of,
    start,
    state,
)

import dcil_dsl as dcil


def test_st3_shrinks_what_is_kept_and_goes_straight_through():
    dual = ours(
        "prune Linear to global(75%) { refresh = 1 step }", STRAIGHT.format(view="soft_threshold()")
    )
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        seen = soft_views(weights, masks)
        sgd(weights, velocities, gradients(x, y, seen))
    assert_same(dual, weights)


def test_what_st3_exports_is_what_its_path_sees():
    dual = ours(
        "prune Linear to global(75%) { refresh = 1 step }", STRAIGHT.format(view="soft_threshold()")
    )
    x, _ = next(batches())
    exported = dcil.export(dual)
    assert torch.equal(exported(x), dual.eval()(x)["sparse"])
    weights = [dual.get_parameter(f"{name}.weight").detach() for name in ("first", "second")]
    dual.refresh(STEPS)
    for view, layer in zip(soft_views(weights, largest(weights, KEEP)), ("first", "second")):
        own = dcil.export(dual).get_submodule(layer).weight
        assert torch.allclose(own, view, rtol=0, atol=1e-14)


def test_acdc_zeroes_what_it_prunes_and_begins_dense_phases_without_momentum():
    dual = ours(
        "prune Linear to global(75%) { schedule = once(at=4 steps)  refresh = [4 steps, 8 steps]"
        "  forget = true }",
        """path dense = full  path sparse = masked
           update kept, pruned by dense  until 4 steps
           update kept         by sparse from 4 steps until 6 steps
           update kept, pruned by dense  from 6 steps until 8 steps
           update kept         by sparse from 8 steps
           loss cross_entropy(dense)  until 4 steps
           loss cross_entropy(sparse) from 4 steps until 6 steps
           loss cross_entropy(dense)  from 6 steps until 8 steps
           loss cross_entropy(sparse) from 8 steps
           deploy sparse""",
        train="reset = [6 steps]",
    )
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        if step in (4, 8):
            masks = largest(weights, KEEP)
            for w, v, m in zip(weights, velocities, masks):
                w.mul_(m)
                v.mul_(m)
        if step == 6:  # a dense phase begins
            for v in velocities:
                v.zero_()
        is_sparse = 4 <= step < 6 or step >= 8
        grads = gradients(x, y, weights)
        if is_sparse:
            grads = [g * m for g, m in zip(grads, masks)]
        sgd(weights, velocities, grads)
    assert_same(dual, weights)
    exported = [p.detach() for p in dcil.export(dual).parameters()]
    assert sum(int((w != 0).sum()) for w in exported) == KEEP


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest():
    masks_seen = []
    dual = ours(
        "prune Linear to 75% { refresh = 3 steps  forget = true"
        "  regrow = gradient(50%, stop=9 steps) }",
        KEPT,
        after=lambda dual, step: masks_seen.append([m.clone() for m in dual.masks.values()]),
    )
    weights, velocities = state()
    masks, dense = masks_seen[0], None  # the first are drawn by chance
    assert [int(m.sum()) for m in masks] == [24, 12]
    changed = 0
    for step, (x, y) in enumerate(batches()):
        if step and step % 3 == 0:
            share = cosine_share(0.5, step, 9)
            new = [drop_and_grow(*three, share) for three in zip(masks, weights, dense)]
            changed += sum(int((a & ~b).sum()) for a, b in zip(new, masks))
            masks = new
        for w, v, m, seen in zip(weights, velocities, masks, masks_seen[step]):
            assert torch.equal(m, seen), f"step {step}"
            w.mul_(m)
            v.mul_(m)
        dense = gradients(x, y, weights)  # of all weights, as the pruned network has it
        sgd(weights, velocities, [g * m for g, m in zip(dense, masks)])
    assert changed > 4
    assert_same(dual, weights)


def test_set_keeps_its_count_and_what_it_grows_starts_from_zero():
    masks_seen, values = [], []

    def look(dual, step):
        masks_seen.append([m.clone() for m in dual.masks.values()])
        values.append([dual.get_parameter(n).detach().clone() for n in dual.masks])

    ours(
        "prune Linear to 75% { refresh = 4 steps  forget = true  regrow = random(50%, stop=10ep) }",
        KEPT,
        after=look,
    )
    grown = 0
    for before, after, value in zip(masks_seen, masks_seen[1:], values[1:]):
        for old, new, w in zip(before, after, value):
            assert new.sum() == old.sum()
            fresh = new & ~old
            assert not w[fresh].any()
            grown += int(fresh.sum())
    assert grown > 8


def test_sr_ste_pulls_what_two_of_four_prunes():
    dual = ours(
        "prune Linear to 2:4 { refresh = 1 step  penalty = [square(pruned, 0.02)] }",
        STRAIGHT.format(view="masked"),
    )
    weights, velocities = state()
    for x, y in batches():
        masks = [two_of_four(w) for w in weights]
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        grads = [g + 0.02 * w * ~m for g, w, m in zip(grads, weights, masks)]
        sgd(weights, velocities, grads)
    assert_same(dual, weights)


def test_top_kast_teaches_the_kept_and_the_next_best():
    dual = ours(
        "prune Linear to global(75%) { refresh = 1 step  reserve = 10%"
        "  penalty = [square(kept, 0.01), square(reserve, 0.04)] }",
        "path sparse = masked  update kept, reserve by sparse  update pruned by 0 * sparse"
        "  loss cross_entropy(sparse)  deploy sparse",
    )
    weights, velocities = state()
    for x, y in batches():
        masks, wide = largest(weights, KEEP), largest(weights, KEEP + 14)
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        sgd(
            weights,
            velocities,
            [
                g * b + 0.01 * w * m + 0.04 * w * (b & ~m)
                for g, w, m, b in zip(grads, weights, masks, wide)
            ],
        )
    assert_same(dual, weights)


def test_powerpropagation_learns_the_root():
    dual = ours("prune Linear to global(75%) { refresh = 1 step  param = power(alpha=3) }", KEPT)
    thetas, velocities = state()
    thetas = [w.sign() * w.abs() ** (1 / 3) for w in thetas]
    for x, y in batches():
        masks = largest(thetas, KEEP)
        weights = [t * t.abs() ** 2 for t in thetas]
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        sgd(thetas, velocities, [g * m * 3 * t.abs() ** 2 for g, m, t in zip(grads, masks, thetas)])
    assert_same(dual, thetas)
    dual.refresh(STEPS)
    exported = [p.detach() for p in dcil.export(dual).parameters()]
    for own, t, m in zip(exported, thetas, largest(thetas, KEEP)):
        assert torch.allclose(own, t * t.abs() ** 2 * m, rtol=0, atol=1e-12)


def test_a_root_starts_from_the_weights_that_the_model_has():
    recipe = dcil.loads(recipe_of("prune Linear to 75% { param = power(2) }", KEPT))
    plan = dcil.resolve(recipe, start(), steps_per_epoch=STEPS)
    dual = dcil.compile(plan, start())
    x, _ = next(batches())
    with torch.no_grad():
        assert torch.allclose(dual(x)["sparse"], start()(x), rtol=0, atol=1e-14)


def test_feddip_adds_the_norm_of_what_is_kept_in_rising_steps():
    dual = ours(
        "prune Linear to global(75%) { refresh = 1 step  penalty = [norm(kept, 0.1, stairs=4)] }",
        STRAIGHT.format(view="masked"),
    )
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        masks = largest(weights, KEEP)
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        weight = 0.1 * (step * 4 // STEPS) / 4
        grads = [
            g + weight * w * m / (w * m).square().sum().sqrt()
            for g, w, m in zip(grads, weights, masks)
        ]
        sgd(weights, velocities, grads)
    assert_same(dual, weights)


def test_a_complement_sees_the_pruned_weights_alone():
    dual = ours(
        "prune Linear to global(75%) { refresh = 1 step }",
        """path sparse = masked  path rest = complement
           update kept by sparse  update pruned by rest
           loss cross_entropy(sparse)  loss cross_entropy(rest)  deploy sparse""",
    )
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        kept = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        rest = gradients(x, y, [w * ~m for w, m in zip(weights, masks)])
        sgd(weights, velocities, [torch.where(m, a, b) for m, a, b in zip(masks, kept, rest)])
    assert_same(dual, weights)


def test_a_step_without_its_penalties_is_refused():
    recipe = dcil.loads(recipe_of("prune Linear to 75% { penalty = [square(kept, 1e-3)] }", KEPT))
    dual = dcil.compile(dcil.resolve(recipe, start(), steps_per_epoch=STEPS), start())
    dual.begin_step(0)
    with pytest.raises(RuntimeError, match="add_penalties"):
        dual.begin_step(1)
