"""A refresh of the masks hardly makes the host wait; a step without one, or a batch, not at all."""

import pytest
import torch
from support.cuda_waits import count_waits

from dcil_dsl.compiler import compile_plan
from dcil_dsl.data import Loader, open_dataset
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss
from dcil_dsl.training.optim import make_optimizer
from dcil_dsl.words.augment import Erase, Flip, MixUp, PadCrop
from dcil_dsl.zoo import build_model

pytestmark = pytest.mark.gpu
RECIPE = """
language 1
prune Conv2d to {target}
prune Conv2d in "layer3" to global(80%) {{ floor = 2% }}
mix {{
  path sparse = masked
  path dense  = full
  update kept by sparse  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 2ep  optimizer = sgd(lr=0.01, momentum=0.9, nesterov=true) }}
"""


def make(target, device):
    traced = trace_model(build_model("dcil:resnet20"))
    plan = resolve_recipe(loads(RECIPE.format(target=target)), traced, steps_per_epoch=10)
    return compile_plan(plan, traced).to(device)


def test_count_waits_counts_a_wait_for_the_device(device):
    number = torch.ones((), device=device)
    assert count_waits(number.item) == 1


@pytest.mark.parametrize("target, budgets", [("global(90%)", 2), ("90%", 1)])
def test_a_refresh_waits_at_most_once_a_global_budget(device, target, budgets):
    dual = make(target, device)
    assert count_waits(lambda: dual.refresh(16)) <= budgets


def test_a_step_between_refreshes_never_waits(device):
    dual = make("global(90%)", device).train()
    optimizer = make_optimizer(dual.plan.train.optimizer, dual.trainable())
    assert optimizer.defaults["fused"] is True
    x = torch.randn(8, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (8,), device=device)

    def step():
        dual.begin_step(5)
        loss = total_loss(dual.plan, dual(x), y, 5)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    assert dual.plan.groups[0].refresh != 5
    assert count_waits(step) == 0


def test_batches_of_a_small_set_are_made_without_a_wait(device):
    data = open_dataset("synthetic", num_train=512, num_val=8)
    augment = (PadCrop(pixels=4), Flip(p=0.5), Erase(p=0.5), MixUp(alpha=0.2))
    loader = Loader(data, "train", batch_size=64, augment=augment, device=device)

    def epoch():
        for images, _ in loader.epoch(0):
            images.sum()

    assert count_waits(epoch) == 0
    assert loader._workers is None
