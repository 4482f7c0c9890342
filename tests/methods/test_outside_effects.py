"""Words of another package do in training what their class says: in float64, to rounding."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.integrator_runs import RULE, TWO_PATHS, moved, plainly
from support.integrator_runs import ours as integrated
from support.outside_package import WORDS, forget, install
from support.plainly import LR, gradients, largest, network, sgd
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
from dcil_dsl.diagnostics import InputError

USES = 'recipe outside { uses = ["my-words"] }\n'


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    yield
    forget("my_words")


def highest(scores, keep=KEEP):
    """Masks of the `keep` highest of all layers together, signs counted."""
    flat = torch.cat([s.flatten() for s in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True)[:keep]] = True
    parts = mask.split([s.numel() for s in scores])
    return [part.view_as(s) for part, s in zip(parts, scores)]


def test_a_score_may_have_a_sign_and_the_most_negative_goes_first():
    dual = ours(USES + "prune Linear to global(75%) { refresh = 1 step  score = signed }", KEPT)
    weights, velocities = state()
    for x, y in batches():
        masks = highest(weights)
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        sgd(weights, velocities, [g * m for g, m in zip(grads, masks)])
    assert_same(dual, weights)


def test_a_score_of_units_is_the_sum_of_the_scores_of_their_weights():
    rule = "prune Linear to 50% { granularity = filter(ties = none)  score = bounded(limit=0.2) }"
    masks = []
    ours(USES + rule, KEPT, after=lambda dual, step: masks.append(dual.masks["first.weight"]))
    scores = start().first.weight.abs().clamp(max=0.2).sum(1)
    kept = scores.argsort(descending=True)[:6]
    assert masks[0].any(1).nonzero().flatten().tolist() == sorted(kept.tolist())


@pytest.mark.parametrize("average", [None, 0.75])
def test_a_score_of_gradients_is_their_sum_or_moving_average(average):
    setting = "" if average is None else f", average={average}"
    rule = f"refresh = 3 steps  score = squared_slope(sparse{setting})"
    dual = ours(USES + f"prune Linear to global(75%) {{ {rule} }}", STRAIGHT.format(view="masked"))
    weights, velocities = state()
    totals, masks = [torch.zeros_like(w) for w in weights], largest(weights, KEEP)
    for step, (x, y) in enumerate(batches()):
        if step and step % 3 == 0:
            masks = highest(totals)
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        for total, g in zip(totals, grads):
            if average is None:
                total.add_(g**2)
            else:
                total.mul_(average).add_(g**2, alpha=1 - average)
        sgd(weights, velocities, grads)
    assert_same(dual, weights)


def test_a_scaled_loss_does_not_change_a_score_of_gradients():
    text = USES + "prune Linear to global(75%) { refresh = 4 steps  score = squared_slope }"
    totals = []
    for scale in (1.0, 1024.0):
        plan = dcil.resolve(dcil.loads(recipe_of(text, KEPT)), start(), steps_per_epoch=STEPS)
        dual, (x, y) = dcil.compile(plan, start()), next(batches())
        dual.begin_step(0, torch.tensor(scale))
        (scale * dcil.loss(plan, dual(x), y, 0)).backward()
        totals.append(dual.get_buffer("first.weight_score").clone())
    assert totals[0].any()
    assert torch.allclose(*totals, rtol=1e-6, atol=0)


def test_a_loss_is_the_number_that_its_class_gives():
    mix = TWO_PATHS + "  loss 0.5 * distance(sparse, other=dense, scale=3) from 4 steps"
    dual = ours(USES + RULE, mix)
    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        masks = largest(weights, KEEP)
        sparse = [(w * m).requires_grad_() for w, m in zip(weights, masks)]
        dense = [w.clone().requires_grad_() for w in weights]
        ours_, theirs = network(x, sparse), network(x, dense)
        loss = F.cross_entropy(ours_, y) + F.cross_entropy(theirs, y)
        if step >= 4:
            loss = loss + 0.5 * 3 * ((ours_ - theirs.detach()) ** 2).sum() / ours_.numel()
        loss.backward()
        sgd(
            weights,
            velocities,
            [torch.where(m, a.grad, b.grad) for m, a, b in zip(masks, sparse, dense)],
        )
    assert_same(dual, weights)
    assert dual.plan.losses[2].name == "distance(sparse, dense)"


def test_a_loss_that_is_no_number_is_reported(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, text=WORDS.replace(".square().mean()", ".square()"))
    with pytest.raises(
        InputError,
        match="`distance.sparse, dense.`: a loss is a tensor of one number, and this is 16 x 4",
    ):
        ours(USES + RULE, TWO_PATHS + "  loss distance(sparse, other=dense)")


def test_a_score_in_another_shape_is_reported(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, text=WORDS.replace("return weight\n", "return weight.sum(1)\n"))
    with pytest.raises(InputError, match="scores of the weight's shape, 12 x 8; it returned 12"):
        ours(USES + "prune Linear to 75% { score = signed }", KEPT)


def test_a_view_is_seen_in_training_and_exported():
    dual = ours(USES + RULE, STRAIGHT.format(view="rounded(steps=4)"))
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        seen = [torch.round(w * 4) / 4 * m for w, m in zip(weights, masks)]
        sgd(weights, velocities, gradients(x, y, seen))
    assert_same(dual, weights)
    exported = [p.detach() for p in dcil.export(dual).parameters()]
    expected = [torch.round(w * 4) / 4 * m for w, m in zip(weights, dual.masks.values())]
    for one, other in zip(exported, expected):
        assert torch.equal(one, other)


def test_a_penalty_adds_its_gradient_to_one_part():
    rule = "prune Linear to global(75%) { refresh = 1 step  penalty = [cubes(pruned, 0.02)] }"
    dual = ours(USES + rule, STRAIGHT.format(view="masked"))
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        grads = gradients(x, y, [w * m for w, m in zip(weights, masks)])
        sgd(weights, velocities, [g + 0.02 * w**3 * ~m for g, w, m in zip(grads, weights, masks)])
    assert_same(dual, weights)


@pytest.mark.parametrize("players", ["joint", "each"])
def test_an_integrator_makes_one_gradient_of_several(players):
    def midpoint(field, w):
        return field(moved(w, LR / 2, field(w)))

    def step(field, w, masks):
        if players == "joint":
            return midpoint(field, w)
        kept = midpoint(lambda at: [g * m for g, m in zip(field(at), masks)], w)
        pruned = midpoint(lambda at: [g * ~m for g, m in zip(field(at), masks)], w)
        return [a + b for a, b in zip(kept, pruned)]

    dual = integrated(f"midpoint(players={players})", rule=USES + RULE)
    assert_same(dual, plainly(step))
    assert dual.plan.train.integrator.num_gradients == {"joint": 2, "each": 3}[players]


def test_js_is_the_divergence_of_both_from_their_middle():
    dual = ours(RULE, TWO_PATHS + "  loss 2 * js(one=sparse, other=dense, temperature=1.5)")
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        sparse = [(w * m).requires_grad_() for w, m in zip(weights, masks)]
        dense = [w.clone().requires_grad_() for w in weights]
        answers = network(x, sparse), network(x, dense)
        p, q = (F.softmax(answer / 1.5, dim=1) for answer in answers)
        m = (p + q) / 2
        js = (p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2
        loss = sum(F.cross_entropy(answer, y) for answer in answers) + 2 * 1.5**2 * js
        loss.backward()
        sgd(
            weights,
            velocities,
            [torch.where(m, a.grad, b.grad) for m, a, b in zip(masks, sparse, dense)],
        )
    assert_same(dual, weights)


def test_a_network_of_which_much_is_distinct_loses_no_small_probability_in_js():
    from dcil_dsl.words.losses import JS

    far = {"a": torch.tensor([[200.0, 0.0]]), "b": torch.tensor([[0.0, 200.0]])}
    loss = JS(one="a", other="b").loss(far, None)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)


def test_a_compiled_graph_takes_views_and_scores_of_a_package_whole():
    rule = "prune Linear to global(75%) { refresh = 4 steps  score = squared_slope }"
    text = recipe_of(USES + rule, STRAIGHT.format(view="rounded"))
    plan, (x, y), found = dcil.resolve(dcil.loads(text), start(), STEPS), next(batches()), []
    for wrap in (lambda dual: dual, partial(torch.compile, backend="aot_eager", fullgraph=True)):
        dual = dcil.compile(plan, start())
        dual.begin_step(0)
        dcil.loss(plan, wrap(dual)(x), y, 0).backward()
        found.append((dual.get_buffer("first.weight_score"), dual.first.weight.grad))
    assert found[0][0].any()
    assert all(torch.equal(a, b) for a, b in zip(*found))
