"""Learning rates against closed forms; optimizers against the updates written out."""

from __future__ import annotations

import math

import pytest
import torch
from support.in_steps import steps
from support.tiny_run import tiny_plan
from torch import nn

from dcil_dsl.plan import plan as p
from dcil_dsl.training.optim import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_rate,
)
from dcil_dsl.words.optimizers import SGD, AdamW
from dcil_dsl.words.rates import ConstantRate, Cosine, Multistep, Rate


def plan_with(rate: Rate, lr: float = 0.2, num_steps: int = 101) -> p.Plan:
    return tiny_plan(train={"rate": rate, "optimizer": SGD(lr=lr)}, num_steps=num_steps)


def test_the_authors_rate_rises_by_the_iteration_and_drops_at_its_epochs():
    rate = Multistep(warmup=steps(50), warmup_from=0.1, at=(steps(80), steps(90)), gamma=0.1)
    plan = plan_with(rate)
    rates = [plan.lr_at(step) for step in (0, 1, 25, 49, 50, 79, 80, 90)]
    assert rates == pytest.approx([0.1, 0.102, 0.15, 0.198, 0.2, 0.2, 0.02, 0.002])


def test_cosine_goes_from_lr_to_final_at_the_last_step():
    plan = plan_with(Cosine(warmup=steps(20), final=0.04))
    rates = [plan.lr_at(step) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.12, 0.04])
    quarter = 0.04 + 0.16 * (1 + math.cos(math.pi / 4)) / 2
    assert plan.lr_at(40) == pytest.approx(quarter)


def test_constant_is_constant():
    plan = plan_with(ConstantRate())
    assert {plan.lr_at(step) for step in range(101)} == {0.2}


def test_sgd_is_nesterov_with_decay_on_every_weight():
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    spec = SGD(lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer = make_optimizer(spec, [("weight", weight)])
    w, v = weight.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        gradient = torch.tensor([0.3, -0.1], dtype=torch.float64) * (step + 1)
        weight.grad = gradient.clone()
        set_rate(optimizer, 0.5 / (step + 1))
        optimizer.step()
        g = gradient + 0.1 * w
        v = 0.9 * v + g
        w = w - 0.5 / (step + 1) * (g + 0.9 * v)
    torch.testing.assert_close(weight.detach(), w)


def test_adamw_takes_the_recipes_settings():
    spec = AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    group = make_optimizer(spec, nn.Linear(2, 2).named_parameters()).param_groups[0]
    taken = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    assert taken == (0.01, (0.8, 0.95), 1e-6, 0.3)


def test_one_list_in_the_given_order():
    names = ["c", "a", "b"]
    named = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    (group,) = make_optimizer(SGD(lr=0.1), named).param_groups
    assert group["param_names"] == names


def test_a_weight_whose_path_starts_late_gets_its_momentum_late():
    early, late = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = make_optimizer(SGD(lr=1.0, momentum=0.5), [("early", early), ("late", late)])
    early.grad = torch.ones(1)
    optimizer.step()
    late.grad = torch.ones(1)
    optimizer.step()
    assert (early.item(), late.item()) == (-2.5, -1.0)


@pytest.mark.parametrize("spec", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1)])
def test_the_state_goes_out_by_name_and_comes_back(spec):
    def stepped(state=None):
        module = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(spec, module.named_parameters())
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step() if state is None else load_optimizer_state(optimizer, state, spec)
        return optimizer_state(optimizer)

    state = stepped()
    again = stepped({name: value.contiguous() for name, value in state.items()})
    assert "weight/momentum_buffer" in state or "weight/exp_avg_sq" in state
    torch.testing.assert_close(again, state, rtol=0, atol=0)
    assert [t.stride() for t in again.values()] == [t.stride() for t in state.values()]
