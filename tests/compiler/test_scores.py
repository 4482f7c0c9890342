"""Scores over several steps of a compiled model, against the same written plainly in float64."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.comparison import compile_text
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.compiler.weight_state import scores_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sharding.rows import RowPlacement
from dcil_dsl.training.average import start_average

SHAPES = {"0.weight": (6, 5), "2.weight": (4, 6)}
STEPS, RATE = 8, 0.5

RECIPE = """
language 1
prune Linear to {target} {{
  score    = {score}
  schedule = linear(0 steps..6 steps, initial=20%)
  refresh  = 2 steps
}}
mix {{
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse) {window}
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 1ep  optimizer = sgd(lr=0.5)  seed = {seed} }}
"""


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False)
    ).double()


def compiled(score, target="global(60%)", window="", seed=0, model=None):
    text = RECIPE.format(score=score, target=target, window=window, seed=seed)
    return compile_text(text, model or net())


def batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return images, torch.arange(7) % 4


def take_step(dual, step):
    """One plain update, as the recipe's optimizer has it; the masks and scores it ends with."""
    dual.train().begin_step(step)
    images, labels = batch(step)
    dcil.loss(dual.plan, dual(images), labels, step).backward()
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter -= RATE * parameter.grad
            parameter.grad = None
    masks = {name: mask.clone() for name, mask in dual.masks.items()}
    return masks, {name: score.clone() for name, score in dual.score_state.items()}


# -- the reference ------------------------------------------------------------------------------

TERMS = {
    "taylor": lambda w, g: (w * g).abs(),
    "movement": lambda w, g: -w * g,
    "gradient": lambda w, g: g.abs(),
}


def sorted_masks(scores, num_keep):
    """The highest of all layers together, by sorting a list."""
    entries = [(-value, i, j) for i, s in enumerate(scores) for j, value in enumerate(s.flatten())]
    chosen = {(i, j) for _, i, j in sorted((float(v), i, j) for v, i, j in entries)[:num_keep]}
    return [
        torch.tensor([(i, j) in chosen for j in range(s.numel())]).view(s.shape)
        for i, s in enumerate(scores)
    ]


def plain_steps(kind, average, path, runs_from=0):
    """Yields (masks, scores) after each step, nothing shared with the package."""
    weights = [w.detach().clone() for w in net().parameters()]
    totals = [torch.zeros_like(w) for w in weights]
    for step in range(STEPS):
        if step % 2 == 0:
            sparsity = 0.6 if step >= 6 else 0.2 + 0.4 * step / 6
            seen = totals if any(t.any() for t in totals) else [w.abs() for w in weights]
            masks = sorted_masks(seen, int(54 * (1 - sparsity) + 1e-9))
        images, labels = batch(step)
        grads = {}
        for name, views in {
            "sparse": [w * m for w, m in zip(weights, masks, strict=True)],
            "dense": weights,
        }.items():
            leaves = [view.clone().requires_grad_() for view in views]
            logits = (images @ leaves[0].T).relu() @ leaves[1].T
            grads[name] = torch.autograd.grad(F.cross_entropy(logits, labels), leaves)
        if path == "dense" or step >= runs_from:
            for total, w, g in zip(totals, weights, grads[path], strict=True):
                fade, gain = (1, 1) if average is None else (average, 1 - average)
                total.copy_(fade * total + gain * TERMS[kind](w, g))
        sparse = grads["sparse"] if step >= runs_from else [torch.zeros_like(w) for w in weights]
        for w, m, s, d in zip(weights, masks, sparse, grads["dense"], strict=True):
            w -= RATE * torch.where(m, s, d)
        yield masks, totals


@pytest.mark.parametrize(
    "score, kind, average, path",
    [
        ("taylor", "taylor", None, "sparse"),
        ("taylor(dense, average=0.8)", "taylor", 0.8, "dense"),
        ("movement", "movement", None, "sparse"),
        ("movement(average=0.5)", "movement", 0.5, "sparse"),
        ("gradient(dense)", "gradient", None, "dense"),
        ("gradient(average=0.9)", "gradient", 0.9, "sparse"),
    ],
)
def test_scores_and_masks_of_several_steps_are_the_plainly_written_ones(score, kind, average, path):
    dual = compiled(score)
    for step, (masks, totals) in enumerate(plain_steps(kind, average, path)):
        ours, scores = take_step(dual, step)
        for mask, total, name in zip(masks, totals, SHAPES, strict=True):
            assert torch.equal(ours[name], mask), (step, name)
            torch.testing.assert_close(scores[name], total.float(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("score, average", [("taylor", None), ("taylor(average=0.5)", 0.5)])
def test_a_score_stands_still_while_its_path_does_not_run(score, average):
    """The sparse path begins at step 3: until then magnitude stands in."""
    dual = compiled(score, window="from 3 steps")
    for step, (masks, totals) in enumerate(plain_steps("taylor", average, "sparse", runs_from=3)):
        ours, scores = take_step(dual, step)
        for mask, total, name in zip(masks, totals, SHAPES, strict=True):
            assert torch.equal(ours[name], mask), (step, name)
            torch.testing.assert_close(scores[name], total.float(), rtol=2e-5, atol=1e-7)


# -- scores without gradients ----------------------------------------------------------------------


def test_a_moving_average_of_magnitude_takes_in_the_weight_that_each_step_begins_with():
    dual, weights, means = compiled("magnitude(average=0.75)"), {}, {}
    for step in range(4):
        weights = {name: dual.get_parameter(name).detach().abs().clone() for name in SHAPES}
        means = {
            name: 0.75 * means.get(name, torch.zeros_like(w)) + 0.25 * w
            for name, w in weights.items()
        }
        _, scores = take_step(dual, step)
    for name, mean in means.items():
        torch.testing.assert_close(scores[name], mean.float())


def test_random_masks_are_nested_along_the_ramp_and_the_same_for_the_same_seed():
    dual, again, other = (compiled("random", seed=seed) for seed in (0, 0, 1))
    for one in (dual, again, other):
        one.refresh(0)
    before = dict(zip(SHAPES, (dual.masks[name].clone() for name in SHAPES), strict=True))
    assert all(torch.equal(again.masks[name], mask) for name, mask in before.items())
    assert not all(torch.equal(other.masks[name], mask) for name, mask in before.items())
    dual.refresh(6)
    assert all((dual.masks[name] <= mask).all() for name, mask in before.items())


def test_redrawn_masks_are_a_function_of_the_step():
    dual = compiled("random(redraw=true)")
    masks = []
    for step in (6, 7, 6):
        dual.refresh(step)
        masks.append(torch.cat([mask.flatten() for mask in dual.masks.values()]))
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])


def test_random_knows_a_layer_by_its_name():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    dual = compiled("random", target="50%", model=model)
    dual.refresh(6)
    one, other = dual.masks.values()
    assert not torch.equal(one, other)


# -- budgets ---------------------------------------------------------------------------------------


def test_lamp_keeps_the_highest_shares_of_all_layers_together():
    dual = compiled("magnitude", target="lamp(60%)")
    dual.refresh(6)
    shares = []
    for name in SHAPES:
        squares = dual.get_parameter(name).detach().square()
        rest = [squares[squares >= square].sum() for square in squares.flatten()]
        shares.append(squares / torch.stack(rest).view_as(squares))
    expected = sorted_masks(shares, 21)
    assert all(map(torch.equal, dual.masks.values(), expected))


def test_erk_keeps_of_each_layer_what_its_shape_says():
    """eps (11 + 10) = 54 * 0.4; 30 * eps 11/30 = 11.3 and 24 * eps 10/24 = 10.3."""
    dual = compiled("magnitude", target="erk(60%)")
    dual.refresh(6)
    assert [int(mask.sum()) for mask in dual.masks.values()] == [11, 10]


def test_whole_units_are_compared_by_the_mean_of_a_score_below_zero():
    dual = compiled("movement", target="global(50%, granularity=filter(ties=none))")
    for total, sign in zip(dual.score_state.values(), (-1.0, 1.0), strict=True):
        total.copy_(sign * torch.arange(1, len(total) + 1.0)[:, None].expand_as(total))
    dual.refresh(6)
    rows = [mask.any(dim=1).tolist() for mask in dual.masks.values()]
    assert rows == [[True] + 5 * [False], 4 * [True]]


# -- what a score is not ---------------------------------------------------------------------------


def test_a_recipe_whose_score_is_a_size_keeps_nothing_next_to_the_masks():
    plain, scored = compiled("l2"), compiled("taylor")
    assert plain.score_state == {}
    assert not [name for name, _ in plain.named_buffers() if not name.endswith("_mask")]
    extra = scored.state_dict().keys() - plain.state_dict().keys()
    assert extra == {"0.weight_score", "2.weight_score"}
    assert [n for n, _ in scored.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_what_is_exported_has_no_score():
    dual = compiled("taylor(average=0.5)")
    take_step(dual, 0)
    model = dcil.export(dual, unfinished=True)
    assert dict(model.named_buffers()) == {} and model.state_dict().keys() == SHAPES.keys()
    assert len(dual.score_state) == 2


def test_averaged_weights_leave_scores_alone():
    dual = compiled("movement")
    scores = {f"{name}_score" for name in dual.score_state}
    assert start_average(dual, 0.9, exclude=scores).mean.keys() == SHAPES.keys()


def test_a_copy_has_scores_of_its_own():
    dual = compiled("taylor")
    take_step(dual, 0)
    copied, before = copy.deepcopy(dual), dual.score_state["0.weight"].clone()
    take_step(copied, 1)
    assert torch.equal(dual.score_state["0.weight"], before)
    assert not torch.equal(copied.score_state["0.weight"], before)


def test_a_gradient_in_evaluation_changes_no_score():
    dual = compiled("taylor")
    images, labels = batch(0)
    F.cross_entropy(dual.eval()(images)["sparse"], labels).backward()
    assert not dual.score_state["0.weight"].any()


def test_the_scale_of_a_loss_does_not_change_its_scores():
    plain, scaled = compiled("taylor"), compiled("taylor")
    take_step(plain, 0)
    scaled.train().begin_step(0, loss_scale=torch.tensor(1024.0))
    images, labels = batch(0)
    (1024 * dcil.loss(scaled.plan, scaled(images), labels, 0)).backward()
    for name, score in plain.score_state.items():
        torch.testing.assert_close(scaled.score_state[name], score)


@pytest.mark.parametrize("score", ["movement", "movement(average=0.5)"])
def test_a_batch_in_two_parts_moves_as_the_whole_does(score):
    """Movement is linear in the gradient, and an average fades once a step."""
    whole, parts = compiled(score), compiled(score)
    take_step(whole, 0)
    take_step(whole, 0)
    take_step(parts, 0)
    images, labels = batch(0)
    parts.train().begin_step(0)
    for part in (slice(0, 3), slice(3, 7)):
        loss = dcil.loss(parts.plan, parts(images[part]), labels[part], 0)
        (loss * len(labels[part]) / 7).backward()
    for name, score in whole.score_state.items():
        torch.testing.assert_close(parts.score_state[name], score, rtol=1e-5, atol=1e-7)


def test_a_compiled_step_adds_up_the_same_scores():
    plain, fused = compiled("taylor"), compiled("taylor")
    take_step(plain, 0)
    fused.train().begin_step(0)
    images, labels = batch(0)
    step = torch.compile(
        lambda x, y: dcil.loss(fused.plan, fused(x), y, 0), backend="aot_eager", fullgraph=True
    )
    step(images, labels).backward()
    for name, score in plain.score_state.items():
        torch.testing.assert_close(fused.score_state[name], score)


def test_a_weight_that_does_not_learn_cannot_be_scored_by_its_gradient():
    model = net()
    model[2].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"`2.weight` has the score taylor but no gradient"):
        compiled("taylor", model=model)
    compiled("magnitude(average=0.5)", model=model)


def test_in_parts_no_rank_falls_back_on_magnitude_once_a_score_has_moved_on_another():
    dual = compiled("movement")
    (group,) = dual.plan.groups
    sizes = scores_of(dual, group, 2)
    assert torch.equal(sizes[0], dual.get_parameter("0.weight").abs().float())
    for moved, expected in ((0, sizes[0]), (1, torch.zeros(6, 5))):  # on another rank
        dual.placement = RowPlacement(SimpleNamespace(sum=lambda own: own + moved), {})
        assert torch.equal(scores_of(dual, group, 2)[0], expected)
