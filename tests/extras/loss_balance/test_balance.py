"""Inverse-Dirichlet weights are those of arXiv:2107.00940; measuring moves nothing else."""

import pytest
import torch
import torch.nn.functional as F
from support.plainly import largest, network, sgd
from support.two_layers import KEEP, STEPS, assert_same, batches, recipe_of, start, state

import dcil_dsl as dcil
from dcil_dsl.extras.loss_balance.step import WEIGHTS, start_weights, weigh_terms
from dcil_dsl.plan.show_training import show_training
from dcil_dsl.plan.text import Page
from dcil_dsl.training.losses import loss_terms
from dcil_dsl.training.optim import make_optimizer

RULE = "prune Linear to global(75%) { refresh = 1 step }"
MIX = """path sparse = masked  path dense = full
         update kept by sparse  update pruned by dense
         loss cross_entropy(sparse)  loss cross_entropy(dense)
         loss 0.5 * kl(student=sparse, teacher=dense, temperature=2)
         loss kl(student=dense, teacher=sparse, temperature=2) from 5 steps  deploy sparse"""
EVERY, AVERAGE = 3, 0.25


def plan_of(mix=MIX, rule=RULE):
    word = f"inverse_dirichlet(every={EVERY} steps, average={AVERAGE})"
    text = recipe_of(rule, mix).replace("epochs ", f"balance = {word}  epochs ")
    return dcil.resolve(dcil.loads(text), start(), steps_per_epoch=STEPS)


def ours():
    """The dual graph after STEPS steps, and the weights of the losses in each."""
    plan = plan_of()
    dual, seen = dcil.compile(plan, start()), []
    optimizer, memory = make_optimizer(plan.train.optimizer, dual.trainable()), start_weights(plan)
    for step, (x, y) in enumerate(batches()):
        dual.begin_step(step)
        optimizer.zero_grad()

        def learn(i):
            loss = plan.losses[i]
            (loss.coefficient * loss_terms(plan, dual(x), y, step)[loss.name]).backward()

        weigh_terms(dual, step, learn, memory)
        dcil.loss(plan, dual(x), y, step, memory[WEIGHTS]).backward()
        optimizer.step()
        seen.append(memory[WEIGHTS].clone())
    return dual, seen


def divergence(student, teacher):
    target = F.softmax(teacher.detach() / 2, 1)
    return 4 * (target * (target.log() - F.log_softmax(student / 2, 1))).sum(1).mean()


def routed(x, y, weights, masks, term):
    """The gradient of one term: kept entries from the sparse path, pruned from the dense one."""
    sparse = [(w * m).requires_grad_() for w, m in zip(weights, masks)]
    dense = [w.clone().requires_grad_() for w in weights]
    loss = term(network(x, sparse), network(x, dense), y)
    grads = torch.autograd.grad(loss, sparse + dense, allow_unused=True)
    kept, pruned = grads[: len(weights)], grads[len(weights) :]
    return [
        torch.where(m, 0.0 * w if a is None else a, 0.0 * w if b is None else b)
        for w, m, a, b in zip(weights, masks, kept, pruned)
    ]


def plainly():
    terms = [
        lambda sparse, dense, y: F.cross_entropy(sparse, y),
        lambda sparse, dense, y: F.cross_entropy(dense, y),
        lambda sparse, dense, y: divergence(sparse, dense),
        lambda sparse, dense, y: divergence(dense, sparse),
    ]
    coefficients, of_path = [1.0, 1.0, 0.5, 1.0], [(0, 2), (1, 3)]
    (weights, velocities), balance, seen = state(), torch.ones(4).double(), []
    for step, (x, y) in enumerate(batches()):
        masks = largest(weights, KEEP)
        grads = [routed(x, y, weights, masks, term) for term in terms]
        if step % EVERY == 0:
            for places in of_path if step >= 5 else of_path[:1]:
                spread = {k: torch.cat([g.flatten() for g in grads[k]]).std() for k in places}
                for k in places:
                    fresh = max(spread.values()) / spread[k]
                    balance[k] = AVERAGE * balance[k] + (1 - AVERAGE) * fresh
        is_open = [1.0, 1.0, 1.0, float(step >= 5)]
        factors = [a * b * c for a, b, c in zip(is_open, coefficients, balance)]
        sgd(weights, velocities, [sum(f * g for f, g in zip(factors, own)) for own in zip(*grads)])
        seen.append(balance.clone())
    return weights, seen


def test_the_terms_of_a_path_weigh_inversely_to_the_spread_of_their_gradients():
    dual, seen = ours()
    weights, wanted = plainly()
    for step, (own, plain) in enumerate(zip(seen, wanted)):
        assert torch.allclose(own, plain, rtol=1e-10, atol=0), f"step {step}"
    assert_same(dual, weights)
    assert seen[2][3] == 1 < seen[-1][3]  # the dense path's are measured from step 6 on


def test_a_term_without_a_gradient_keeps_its_weight():
    """Where nothing is pruned yet both paths answer alike, and have nothing to learn."""
    plan = plan_of(rule="prune Linear to global(75%) { schedule = once(at=6 steps) }")
    dual, memory = dcil.compile(plan, start()), start_weights(plan)
    x, y = next(batches())
    dual.begin_step(0)

    def learn(i):
        loss_terms(plan, dual(x), y, 0)[plan.losses[i].name].backward()

    memory[WEIGHTS][2] = 3.0
    weigh_terms(dual, 0, learn, memory)
    assert memory[WEIGHTS].tolist() == [1, 1, 3, 1]
    assert all(parameter.grad is None for parameter in dual.parameters())


def test_a_loop_that_does_not_give_the_weights_is_reported():
    plan = plan_of()
    x, y = next(batches())
    with pytest.raises(dcil.InputError, match="balances its losses"):
        dcil.loss(plan, dcil.compile(plan, start()).eval()(x), y, 0)


def test_losses_that_are_never_measured_together_are_an_error():
    with pytest.raises(dcil.RecipeError) as error:
        plan_of(
            MIX.replace("loss 0.5 * kl(student=sparse, teacher=dense, temperature=2)", "").replace(
                "from 5 steps", "from 10 steps"
            )
        )
    (found,) = error.value.diagnostics
    assert found.code == "E321" and found.span.text.startswith("inverse_dirichlet(")


def test_the_plan_says_how_often_losses_are_measured():
    told = " ".join(show_training(plan_of(), Page()).split())
    assert "every 3 steps the losses of a path weigh inversely to the spread" in told
    assert "25% of the weights so far kept" in told
