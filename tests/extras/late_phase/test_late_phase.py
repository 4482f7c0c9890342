"""Late-phase weights take the steps of algorithm 1 of arXiv:2007.12927, and go on after a break."""

import pytest
import torch
from plainly import DECAY, LR, MOMENTUM, gradients, largest
from two_layers import KEPT, STEPS, assert_same, batches, recipe_of, start, state

import dcil_dsl as dcil
from dcil_dsl.extras.late_phase.step import (
    average_copies,
    end_turn,
    forget_gathered,
    gather,
    start_copies,
    take_turn,
)
from dcil_dsl.plan.show_training import show_training
from dcil_dsl.plan.wording import Page
from dcil_dsl.training.average import deploy_average
from dcil_dsl.training.optim import make_optimizer

RULE = 'layers head = "second"  prune "first" to global(50%) { refresh = 2 steps }'
COPIES, BEGIN = 3, 4  # rounds end after steps 6, 9 and, incomplete, 11


def recipe(rule=RULE, settings=""):
    word = f"late_phase(head, copies={COPIES}, start={BEGIN} steps{settings})"
    return recipe_of(rule, KEPT).replace("epochs ", f"average = {word}  epochs ")


def late(settings="", rule=RULE, optimizer=None):
    text = recipe(rule, settings)
    if optimizer is not None:
        text = text.replace(f"sgd(lr={LR}, momentum={MOMENTUM}, weight_decay={DECAY})", optimizer)
    return dcil.resolve(dcil.loads(text), start(), steps_per_epoch=STEPS)


def ours(plan):
    """The dual graph with the mean of the copies in place, and what is remembered."""
    dual = dcil.compile(plan, start())
    optimizer = make_optimizer(plan.train.optimizer, dual.trainable())
    memory, average = start_copies(dual), average_copies(dual)
    for step, (x, y) in enumerate(batches()):
        if dual.begin_step(step):
            forget_gathered(dual, memory)
        take_turn(dual, optimizer, step, memory)
        optimizer.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        gather(dual, step, memory)
        optimizer.step()
        end_turn(dual, optimizer, step, memory, average)
    deploy_average(average)
    return dual, memory


def largest_of_first(w):
    return largest([w], w.numel() // 2)[0]


def sgd_step(w, velocity, g):
    velocity.mul_(MOMENTUM).add_(g + DECAY * w)
    w.sub_(LR * velocity)


def plainly(scale, starts=lambda w: [w.clone() for _ in range(COPIES)]):
    (first, second), (speed, head_speed) = state()
    copies = None
    for step, (x, y) in enumerate(batches()):
        if step % 2 == 0:
            mask = largest_of_first(first)
        if step == BEGIN:
            copies, speeds = starts(second), [torch.zeros_like(second) for _ in range(COPIES)]
            gathered = torch.zeros_like(first)
        if copies is None:
            ours, theirs = gradients(x, y, [first * mask, second])
            sgd_step(first, speed, ours * mask)
            sgd_step(second, head_speed, theirs)
            continue
        k = (step - BEGIN) % COPIES
        ours, theirs = gradients(x, y, [first * mask, copies[k]])
        gathered += ours * mask
        sgd_step(copies[k], speeds[k], theirs)
        if k == COPIES - 1:
            sgd_step(first, speed, scale * gathered)
            gathered = torch.zeros_like(first)
    return first, sum(copies) / COPIES


@pytest.mark.parametrize("gradients, scale", [("sum", 1.0), ("mean", 1 / COPIES)])
def test_copies_learn_in_turn_and_the_rest_once_a_round(gradients, scale):
    dual, _ = ours(late(f", gradients={gradients}"))
    assert_same(dual, plainly(scale))


def test_copies_start_apart_by_a_share_of_the_weights_root_mean_square():
    def starts(w):
        chance = torch.Generator().manual_seed(0)
        drawn = torch.randn((COPIES, *w.shape), generator=chance).double()
        return [w + 0.2 * (w**2).mean().sqrt() * drawn[k] for k in range(COPIES)]

    dual, _ = ours(late(", noise=0.2"))
    assert_same(dual, plainly(1.0, starts))


def test_adam_counts_the_steps_of_each_copy():
    _, memory = ours(late(optimizer="adamw(lr=0.01)"))
    assert memory["late/copy/second.weight/step"].tolist() == [3, 3, 2]  # of 8 steps


def test_what_is_deployed_is_the_mean_of_copies_that_have_gone_apart():
    dual, memory = ours(late())
    copies = memory["late/copy/second.weight"]
    assert torch.equal(copies.mean(0), dual.second.weight.detach())
    assert not torch.equal(copies[0], copies[1])


def test_what_a_weight_was_about_to_learn_goes_when_it_is_forgotten():
    rule = RULE.replace("refresh", "forget = true  refresh")
    dual, memory = ours(late(rule=rule))
    gathered = memory["late/sum/first.weight"]
    assert gathered.any() and not gathered[~dual.masks["first.weight"]].any()


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('"first" to', "Linear to", "`second.weight` is pruned"),
        ('head = "second"', "head = Linear", "`first.weight` is pruned"),
        (f"start={BEGIN}", "start=10", "2 steps, and a round of copies takes 3"),
    ],
)
def test_what_is_copied_is_not_pruned_and_has_time_for_its_turn(old, new, says):
    text = recipe(RULE).replace(old, new)
    with pytest.raises(dcil.RecipeError) as error:
        dcil.resolve(dcil.loads(text), start(), steps_per_epoch=STEPS)
    (found,) = error.value.diagnostics
    assert found.code == "E322" and says in found.message
    assert found.span.text.startswith("late_phase(")


def test_the_plan_says_what_moves_when():
    told = " ".join(show_training(late(", noise=0.2"), Page()).split())
    assert "3 copies of 1 parameter from step 4, 20% apart, one a step in turn" in told
    assert "all others move once in 3 steps, by the sum of their gradients" in told
