"""`dcil.Pruner` in loops of accelerate: accumulation, fp16, what the loop leaves out."""

import pytest
import torch
from support.library import needed
from torch import nn

import dcil_dsl as dcil

accelerate = needed("accelerate")

RECIPE = """language 1
prune Linear to 80% {
  schedule = cubic(0% run..60% run)
  score = taylor(average=0.9)
  penalty = [square(pruned, weight=0.01)]
}
pruning { refresh = 2 steps }
mix {
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train {
  epochs = 4ep
  optimizer = sgd(lr=0.05, momentum=0.9)
  clip = 0.5
}
"""
X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).double()


def batches(size):
    return list(zip(X.split(size), Y.split(size)))


def trained(accelerator, size=8, scaler=None, parts=1, recipe=RECIPE):
    pruner = dcil.Pruner(recipe, net(), steps_per_epoch=40 // size // parts, scaler=scaler)
    pruner.module, optimizer = accelerator.prepare(pruner.dual, pruner.make_optimizer())
    for x, y in batches(size) * 4:
        with accelerator.accumulate(pruner.module):
            loss = pruner.step_loss(x, target=y)
            accelerator.backward(loss)
            pruner.step(optimizer)
            optimizer.zero_grad()
    return pruner


def same(one, other):
    for a, b in zip(one.export().parameters(), other.export().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.fixture
def accelerator():
    """Makes accelerators. Their state is the process's, and begins anew with each."""

    def reset():
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()

    def make(**settings):
        reset()
        return accelerate.Accelerator(cpu=True, **settings)

    yield make
    reset()


def test_batches_within_accumulate_are_one_step(accelerator):
    recipe = RECIPE.replace("  score = taylor(average=0.9)\n", "")  # its |w g| is of each batch
    loop = accelerator(gradient_accumulation_steps=2)
    parts = trained(loop, size=4, parts=2, recipe=recipe)
    assert parts.steps == 20 == parts.plan.num_steps
    same(parts, trained(accelerator(), size=8, recipe=recipe))


def test_scores_penalties_and_clipping_do_not_depend_on_the_scale_of_the_loss(accelerator):
    """A GradScaler on the CPU in accelerate's place for it."""
    loop = accelerator()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    scaled = trained(loop, scaler=loop.scaler)
    assert loop.scaler.get_scale() > 2.0**10
    same(scaled, trained(accelerator()))


def test_a_scale_that_the_pruner_does_not_know_is_refused(accelerator):
    loop = accelerator()
    loop.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(dcil.InputError, match="scales its loss"):
        trained(loop)


def test_accumulation_in_the_recipe_and_in_the_loop_is_refused(accelerator):
    recipe = RECIPE.replace("clip = 0.5", "accumulate = 2")
    with pytest.raises(dcil.InputError, match="gradient_accumulation_steps=2"):
        trained(accelerator(gradient_accumulation_steps=2), size=4, parts=2, recipe=recipe)


def test_an_optimizer_of_the_model_that_was_given_is_refused():
    model = net()
    pruner = dcil.Pruner(RECIPE, model, steps_per_epoch=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.step_loss(X[:8], target=Y[:8]).backward()
    with pytest.raises(dcil.InputError, match="no weight of pruner.dual"):
        pruner.step(optimizer)


def test_a_loop_that_never_calls_step_of_the_pruner_exports_nothing():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    optimizer = pruner.make_optimizer()
    with pytest.raises((RuntimeError, dcil.SparsityError)):
        for x, y in batches(8):
            pruner.step_loss(x, target=y).backward()
            optimizer.step()
        pruner.export()


def test_a_loop_that_calls_the_model_of_its_own_is_an_error():
    model = net()
    pruner = dcil.Pruner(RECIPE, model, steps_per_epoch=5)
    nn.functional.cross_entropy(model(X[:8]), Y[:8]).backward()
    with pytest.raises(RuntimeError, match="no step was begun"):
        pruner.step(pruner.make_optimizer())
