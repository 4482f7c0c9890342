"""Scores over several steps of a compiled model, against the same written plainly in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from comparison import compile_text
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
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
    """One plain update, as the recipe's optimiser has it; the masks and scores it ends with."""
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
            "sparse": [w * m for w, m in zip(weights, masks, strict=True)], "dense": weights
        }.items():  # fmt: skip
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
def test_scores_and_masks_of_several_steps_are_the_plainly_written_ones(
    score, kind, average, path
):
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
