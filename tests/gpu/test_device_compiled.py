"""torch.compile takes the whole step as one graph, and keeps it when masks move."""

import copy

import pytest
import torch
from support.comparison import DCIL, RECIPE, compile_text

from dcil_dsl.training.losses import total_loss
from dcil_dsl.zoo import build_model

pytestmark = pytest.mark.gpu
STEPS = (0, 2, 4)  # masks differ at each; the losses are the same two, then four, then four


def gradients(dual, forward, x, y):
    dual.zero_grad(set_to_none=True)
    loss = forward(x, y)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in dual.named_parameters() if p.grad is not None}


def test_the_compiled_step_equals_the_eager_one_and_is_not_made_anew_for_moved_masks(device):
    torch._dynamo.reset()
    torch.manual_seed(0)
    text = RECIPE.format(
        prune="Conv2d",
        keep="",
        private="private BatchNorm2d, last Linear",
        updates=DCIL,
        sparsity="90%",
    )
    eager = compile_text(text, build_model("dcil:resnet20").double()).train().to(device)
    ours = copy.deepcopy(eager)
    x = torch.randn(16, 3, 16, 16, dtype=torch.float64, device=device)
    y = torch.randint(0, 10, (16,), device=device)
    compiled = torch.compile(
        lambda x, y: total_loss(ours.plan, ours(x), y, 4), fullgraph=True, dynamic=False
    )
    before = None
    for number, step in enumerate(STEPS):
        eager.refresh(step)
        ours.refresh(step)
        masks = torch.cat([mask.flatten().clone() for mask in ours.masks.values()])
        assert before is None or not torch.equal(before, masks)
        before = masks
        expected, wanted = gradients(
            eager, lambda x, y: total_loss(eager.plan, eager(x), y, 4), x, y
        )
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss, found = gradients(ours, compiled, x, y)
        assert abs(loss - expected) <= 1e-9 * abs(expected)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 1e-7 * gradient.norm() + 1e-9, name
