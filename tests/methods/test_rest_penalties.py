"""Penalties of `train` add their gradients to weights that no rule prunes, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.show import show_plan

RECIPE = """language 1
layers norms = BatchNorm2d
layers head  = last Linear
layers stem  = first Conv2d
prune last Conv2d to 50%
mix {
  path sparse = masked
  path dense  = full { every = 2 steps }
  update kept   by sparse
  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1)  groups = [GROUPS]  penalty = [PENALTY] }
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.conv = nn.Conv2d(6, 4, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.conv(self.up(self.bn(self.stem(x)))).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return Net().double()


def compiled(penalty, groups=""):
    text = RECIPE.replace("PENALTY", penalty).replace("GROUPS", groups)
    plan = Plan.from_json(dcil.resolve(dcil.loads(text), net(), steps_per_epoch=8).to_json())
    return plan, dcil.compile(plan, net())


def gradients(plan, dual, step):
    """Those of the step's losses, and those after its penalties."""
    draw = torch.Generator().manual_seed(step)
    x = torch.rand(6, 3, 7, 7, generator=draw, dtype=torch.float64)
    dual.begin_step(step)
    dual.zero_grad()
    dcil.loss(plan, dual(x), torch.arange(6) % 5, step).backward()
    named = dict(dual.named_parameters())
    before = {n: None if w.grad is None else w.grad.clone() for n, w in named.items()}
    dual.add_penalties(step)
    return before, {name: w.grad for name, w in named.items()}


def absolute(w, axis):
    return w.abs().sum()


def filters(w, axis):
    return sum(w.select(axis, i).norm() for i in range(w.shape[axis]))


def squares(w, axis):
    return w.square().sum() / 2


WEIGHTS = {
    "stem.weight": 0,
    "bn.weight": 0,
    "up.weight": 1,
    "head.weight": 0,
    "bn__dense.weight": 0,
    "head__dense.weight": 0,
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "word, total", [("l1", absolute), ("group_lasso", filters), ("square", squares)]
)
def test_the_gradient_of_the_sum_is_added_to_every_weight_that_no_rule_prunes(word, total, step):
    plan, dual = compiled(f"{word}(rest, 0.01)")
    before, after = gradients(plan, dual, step)
    for name, own in before.items():
        if own is None:  # a twin whose path does not run in this step
            assert step == 1 and "__dense" in name and after[name] is None
            continue
        expected = own
        if name in WEIGHTS:
            w = dual.get_parameter(name).detach().clone().requires_grad_()
            expected = own + torch.autograd.grad(0.01 * total(w, WEIGHTS[name]), w)[0]
        torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-15, msg=name)


def test_layers_and_biases_choose_among_them_and_frozen_ones_stay():
    plan, _ = compiled("l1(rest, 1e-3, of = norms, biases = true)")
    assert plan.train.penalties[0].parameters == ("bn.weight", "bn.bias")
    plan, _ = compiled("l1(rest, 1e-3)", groups="frozen(stem)")
    assert plan.train.penalties[0].parameters == ("bn.weight", "up.weight", "head.weight")
    assert "0.001 times the absolute values of 3 parameters that no rule prunes" in show_plan(plan)


def test_stairs_let_it_rise_over_the_run():
    plan, dual = compiled("l1(rest, 0.5, stairs = 4, of = head)")
    moved = []
    for step in range(8):
        before, after = gradients(plan, dual, step)
        moved.append(float((after["head.weight"] - before["head.weight"]).abs().max()))
    assert moved == pytest.approx([0, 0, 0.125, 0.125, 0.25, 0.25, 0.375, 0.375])


def test_a_step_without_its_penalties_is_an_error():
    plan, dual = compiled("l1(rest, 0.5)")
    dual.begin_step(0)
    with pytest.raises(RuntimeError, match="without its penalties"):
        dual.begin_step(1)


def test_a_step_has_the_gradients_of_a_loss_with_the_penalty_in_it():
    plan, dual = compiled("l1(rest, 0.01, of = norms)")
    hand = net()
    before, after = gradients(plan, dual, 1)
    mask = dual.masks["conv.weight"]
    with torch.no_grad():
        hand.conv.weight.mul_(mask)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 7, 7, generator=draw, dtype=torch.float64)
    loss = F.cross_entropy(hand(x), torch.arange(6) % 5) + 0.01 * hand.bn.weight.abs().sum()
    loss.backward()
    torch.testing.assert_close(after["bn.weight"], hand.bn.weight.grad, rtol=1e-10, atol=1e-14)
    assert not torch.equal(before["bn.weight"], after["bn.weight"])
