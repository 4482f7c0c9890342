"""What a forward does with values of Python, and outside of autograd, has the numbers and gradients
of two plain forwards."""

import pytest
import torch
from support.comparison import compile_text, worst_difference
from support.two_forwards import weighted_squares
from torch import nn

from dcil_dsl.model import trace_model

RECIPE = """
language 1
prune "conv" to 50%
mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse, output="logits")
  loss cross_entropy(dense, output="logits")
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""


class Net(nn.Module):
    """A stem that both paths share, a pruned convolution, and what `rule` makes of both."""

    def __init__(self, rule):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bias, self.memo, self.rule = nn.Parameter(torch.randn(4, 1, 1)), {}, rule

    def train(self, mode=True):
        self.memo = {}
        return super().train(mode)

    def forward(self, x):
        x = self.stem(x)
        return self.rule(self, x, self.conv(x))


def images(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator),), {}


def assigned(net, x, y):
    """A value that both paths share is written by each."""
    x = x * 1
    x[:, :, 1:] = y[:, :, :-1]
    return x + y


def assigned_alike(net, x, y):
    x = x * 1
    x[:, 0] = x[:, 1] * 2
    return x * y


def scaled(net, x, y):
    with torch.no_grad():
        largest = y.abs().amax((1, 2, 3), keepdim=True) + net.bias
    return y / largest + x


def windows(net, x, y):
    return sum(part * (i + 1) for i, part in enumerate(y[:, :, i] for i in range(y.shape[2])))


def remembered(net, x, y):
    if net.training:
        return y + 2 * net.bias
    if "bias" not in net.memo:
        net.memo["bias"] = 2 * net.bias
    return y * net.memo["bias"]


def rearranged(net, x, y):
    einops = pytest.importorskip("einops")
    y = einops.rearrange(y, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
    return y * einops.reduce(x, "b c h w -> b 1 1", "mean")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "rule", [assigned, assigned_alike, scaled, windows, remembered, rearranged]
)
def test_rule_has_the_gradients_of_two_forwards(rule, training):
    net = Net(rule).double()
    assert trace_model(net, images(0)[0]).opaque == {}
    far = worst_difference(
        net, prune="Conv2d", inputs=images, losses=weighted_squares, training=training
    )
    assert far < 1e-9


class Cache:
    def __init__(self, **values):
        vars(self).update(values)


def returned(net, x, y):
    return {"logits": y.mean((2, 3)), "cache": Cache(keys=x, values=[y])}


def test_each_path_returns_an_object_of_its_own_with_its_own_values():
    torch.manual_seed(0)
    net = Net(returned).double()
    dual = compile_text(RECIPE, net, images(0)[0])
    assert dual.plan.opaque == ()
    dual.begin_step(0)
    caches = {path: output["cache"] for path, output in dual(*images(1)[0]).items()}
    assert caches["sparse"] is not caches["dense"]
    assert torch.equal(caches["dense"].values[0], net.conv(net.stem(*images(1)[0])))
    assert torch.equal(caches["sparse"].keys, caches["dense"].keys)
    assert not torch.equal(caches["sparse"].values[0], caches["dense"].values[0])
