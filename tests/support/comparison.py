"""Our dual graph and the plainly written reference, side by side for some steps."""

import random
from dataclasses import is_dataclass

import torch
from torch.utils import _pytree as pytree

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.model import Inputs, trace_model
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss
from support.two_forwards import TwoForwards, cross_entropies_and_kl, numbers_in

# Two epochs of ten steps; KL opens at step 1; masks move at every other step.
RECIPE = """
language 1

prune {prune} to global({sparsity}) {{
  schedule = linear(0 steps..4 steps, initial=50%)
  refresh  = 2 steps
}}
{keep}

mix {{
  path sparse = masked
  path dense  = full
  {updates}
  {private}
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2) from 1 step
  loss kl(student=dense, teacher=sparse, temperature=2) from 1 step
  deploy sparse
}}

train {{
  epochs    = 2ep
  optimizer = sgd(lr=0.01, momentum=0.9, nesterov=true, weight_decay=1e-4)
}}
"""
DCIL = "update kept by sparse  update pruned by dense"


def compile_text(text, model, example=None):
    traced = trace_model(model, example)
    plan = resolve_recipe(loads(text), traced, steps_per_epoch=10)
    return compile_plan(plan, traced)


def worst_difference(
    model,
    size=None,
    *,
    prune,
    private="",
    inputs=None,
    losses=None,
    keep="keep first Conv2d",
    updates=DCIL,
    shares=None,
    sparsity="90%",
    training=True,
    steps=5,
    batch=4,
):
    """The largest difference in outputs, loss, gradients and weights over `steps` steps.

    Each difference is taken relative to 1 + the largest absolute value of the tensor it is in.
    Masks and the outputs' structure have to agree exactly. Both sides draw their random numbers
    from the same seed.

    inputs  step -> (args, kwargs); None: images of `size` pixels
    losses  (sparse output, dense output, target, step) -> scalar; None: those of the recipe
    """
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights drawn in float32 tie by the thousand; rounding would then choose the mask.
            parameter.add_(1e-4 * torch.randn_like(parameter))
    if not training and inputs is None:
        _settle_statistics(model, size, batch)
    text = RECIPE.format(
        prune=prune, keep=keep, private=private, updates=updates, sparsity=sparsity
    )
    example = None if inputs is None else Inputs(*inputs(0))
    dual = compile_text(text, model, example)
    plan = dual.plan
    target = float(sparsity.rstrip("%")) / 100
    shares = shares or {"kept": (1, 0), "pruned": (0, 1), "rest": (1, 0)}
    reference = TwoForwards(
        model,
        [name for group in plan.groups for name in group.parameters],
        [entry.module for entry in plan.privates],
        shares,
        lambda step: 0.5 + (target - 0.5) * min(step / 4, 1),
        losses or cross_entropies_and_kl,
    )
    optimizer = torch.optim.SGD(
        [p for _, p in dual.trainable()], lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    for module in (dual, reference.master):
        module.train(training)
    for name, twin in reference.twin.items():  # as the model's own train() has its original
        for one, other in zip(reference.master.get_submodule(name).modules(), twin.modules()):
            other.training = one.training
    dtype, device = next(model.parameters()).dtype, next(model.parameters()).device
    worst = 0.0

    def compare(ours, theirs):
        nonlocal worst
        ours, theirs = ours.detach(), theirs.detach()
        difference = ((ours - theirs).abs().max() / (1 + theirs.abs().max())).item()
        assert difference == difference, "not a number"
        worst = max(worst, difference)

    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        if inputs is None:
            x = torch.randn(batch, 3, size, size, dtype=dtype, generator=generator)
            given = (x.to(device),), {}
        else:
            given = inputs(step)
        target_B = torch.randint(0, 10, (batch,), generator=generator).to(device)
        if step % 2 == 0:
            reference.refresh(step)
        dual.begin_step(step)
        print(step, worst)
        for name, mask in dual.masks.items():
            assert torch.equal(mask, reference.masks[name].bool()), f"mask of {name}, step {step}"
        _seed(step)
        outputs = dual(*given[0], **given[1])
        if losses is None:
            loss = total_loss(plan, outputs, target_B, step)
        else:
            loss = losses(outputs["sparse"], outputs["dense"], target_B, step)
        optimizer.zero_grad()
        loss.backward()
        _seed(step)
        y_sparse, y_dense, their_loss, gradients = reference.gradients(given, target_B, step)
        for found, expected in ((outputs["sparse"], y_sparse), (outputs["dense"], y_dense)):
            assert type(found) is type(expected)
            if is_dataclass(found) and not isinstance(found, dict):
                found, expected = vars(found), vars(expected)
            assert pytree.tree_structure(found) == pytree.tree_structure(expected)
            for one, other in zip(numbers_in(found), numbers_in(expected), strict=True):
                compare(one, other)
        compare(loss, their_loss)
        ours = dict(dual.named_parameters())
        assert ours.keys() == gradients.keys()
        for name, parameter in ours.items():
            if parameter.grad is None:  # torch's optimizer would leave out its weight decay
                parameter.grad = torch.zeros_like(parameter)
            compare(parameter.grad, gradients[name])
        reference.sgd(gradients, lr=0.01, momentum=0.9, weight_decay=1e-4)
        optimizer.step()
    for name, weight in reference.weights.items():
        compare(dual.get_parameter(name), weight)
    for module, twin in reference.twin.items():
        for name, buffer in twin.named_buffers():
            if buffer.is_floating_point():
                compare(dual.get_submodule(f"{module}__dense").get_buffer(name), buffer)
    for name, buffer in reference.master.named_buffers():
        if buffer.is_floating_point():
            compare(dual.get_buffer(name), buffer)
    return worst


def _seed(step):
    random.seed(step)
    torch.manual_seed(step)


def _settle_statistics(model, size, batch):
    """Norms of an untrained network that know nothing let evaluation overflow."""
    like = next(model.parameters())
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 0.5
    model.train()
    with torch.no_grad():
        for _ in range(6):
            model(torch.randn(batch, 3, size, size).to(like))
