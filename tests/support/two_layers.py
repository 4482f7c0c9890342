"""A network of two layers in float64, and recipes for it."""

import torch
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.training.optim import forget_state, make_optimizer
from support.plainly import DECAY, LR, MOMENTUM

STEPS = 12


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12, bias=False)
        self.second = nn.Linear(12, 4, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 8, dtype=torch.float64, generator=generator)
        yield x, torch.randint(0, 4, (16,), generator=generator)


def recipe_of(rule: str, mix: str, train: str = "") -> str:
    return f"""
    language 1
    {rule}
    mix {{ {mix} }}
    train {{
      epochs    = 1ep
      optimizer = sgd(lr={LR}, momentum={MOMENTUM}, weight_decay={DECAY})
      {train}
    }}
    """


def start() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers().double()


def ours(
    rule: str,
    mix: str,
    after=lambda dual, step: None,
    train: str = "",
    apply=lambda plan, optimizer: optimizer.step(),
):
    """The dual graph after STEPS steps of the recipe; `after` looks at it at each."""
    recipe = dcil.loads(recipe_of(rule, mix, train))
    plan = dcil.resolve(recipe, start(), steps_per_epoch=STEPS)
    dual = dcil.compile(plan, start())
    optimizer = make_optimizer(plan.train.optimizer, dual.trainable())
    for step, (x, y) in enumerate(batches()):
        if dual.begin_step(step):
            forget_state(optimizer, dual)
        optimizer.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        dual.add_penalties(step)
        after(dual, step)
        apply(plan, optimizer)
    return dual


def state():
    model = start()
    weights = [model.first.weight.detach().clone(), model.second.weight.detach().clone()]
    return weights, [torch.zeros_like(w) for w in weights]


def assert_same(dual, weights):
    for name, w in zip(("first.weight", "second.weight"), weights):
        assert torch.allclose(dual.get_parameter(name).detach(), w, rtol=0, atol=1e-12), name


STRAIGHT = """path sparse = {view}  update kept, pruned by sparse
              loss cross_entropy(sparse)  deploy sparse"""


KEPT = """path sparse = masked  update kept by sparse  update pruned by 0 * sparse
          loss cross_entropy(sparse)  deploy sparse"""


COUNT, KEEP = 144, 36  # weights of both layers; a quarter of them
