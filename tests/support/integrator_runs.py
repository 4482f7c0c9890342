"""Steps of integrators, and the same steps written plainly."""

import torch

import dcil_dsl as dcil
from dcil_dsl.training.integrate import integrate, start_previous
from dcil_dsl.training.optim import make_optimizer
from support.plainly import LR, gradients, largest, sgd
from support.two_layers import KEEP, STEPS, batches, recipe_of, start, state

RULE = "prune Linear to global(75%) { refresh = 1 step }"


TWO_PATHS = """path sparse = masked  path dense = full
               update kept by sparse  update pruned by dense
               loss cross_entropy(sparse)  loss cross_entropy(dense)  deploy sparse"""


def ours(integrator: str, rule: str = RULE, mix: str = TWO_PATHS):
    """The dual graph after STEPS steps of the recipe."""
    text = recipe_of(rule, mix).replace("epochs ", f"integrator = {integrator}  epochs ")
    plan = dcil.resolve(dcil.loads(text), start(), steps_per_epoch=STEPS)
    dual = dcil.compile(plan, start())
    optimizer, memory = make_optimizer(plan.train.optimizer, dual.trainable()), start_previous(dual)
    for step, (x, y) in enumerate(batches()):
        dual.begin_step(step)
        optimizer.zero_grad()
        before = [p.detach().clone() for p in dual.parameters()]
        integrate(dual, LR, lambda: dcil.loss(plan, dual(x), y, step).backward(), memory)
        assert all(torch.equal(a, b) for a, b in zip(before, dual.parameters()))
        optimizer.step()
    return dual


def plainly(step_of):
    """The weights after as many steps of SGD along step_of(field, weights, masks)."""
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)

        def field(at):
            kept = gradients(x, y, [w * m for w, m in zip(at, masks)])
            pruned = gradients(x, y, at)
            return [torch.where(m, a, b) for m, a, b in zip(masks, kept, pruned)]

        sgd(weights, velocities, step_of(field, weights, masks))
    return weights


def moved(weights, by, along):
    return [w - by * g for w, g in zip(weights, along)]
