"""Shapes of models in which paths meet in odd places: equal to two plain copies."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from torch import Tensor, nn

WIDTH = 6


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.side = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("count", torch.zeros(()))


class TwoTowers(Base):
    def forward(self, x):
        one = F.normalize(self.body(self.stem(x)), dim=-1)
        two = F.normalize(self.head(x.flip(1)), dim=-1)
        logits = self.scale.exp() * one @ two.transpose(-1, -2)
        return {"logits": logits, "one": one, "two": self.side(two), "scale": self.scale.exp()}


class TiedAcross(Base):
    """One weight at a kept place and at a pruned one."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(WIDTH, WIDTH)
        self.side.weight = self.body.weight

    def forward(self, x):
        return self.head(self.side(self.body(self.stem(x))).tanh()), self.side(x)


class Loop(Base):
    """A recurrent cell, the same weights at each step, all states returned."""

    def forward(self, x):
        h, states = self.stem(x[:, 0]), []
        for _ in range(3):
            h = (self.body(h) + self.stem(x[:, 1])).tanh()
            states.append(h)
        return self.head(torch.stack(states, 1)), self.side(states[0]), states


class DeepSupervision(Base):
    def forward(self, x):
        h = self.stem(x)
        deep = [self.side(h)]
        for layer in (self.body, self.head):
            h = layer(h).relu() + h
            deep.append(self.side(h))
        return tuple(deep), [F.mse_loss(deep[0], deep[1]), self.side.weight.norm()]


class HeadsByMode(Base):
    def forward(self, x):
        h = self.stem(x)
        y = self.head(self.body(h).relu())
        return (y, self.side(h)) if self.training else y


class ReturnsItsBuffers(Base):
    def forward(self, x):
        h = self.stem(x)
        self.count += h.detach().mean()
        return self.head(self.body(h)), self.count * 1, self.scale


@dataclass
class Record:
    logits: Tensor
    inner: list


class ReturnsRecords(Base):
    def forward(self, x):
        h = self.stem(x)
        return Record(self.head(self.body(h)), [h.sigmoid(), {"side": self.side(h)}, x])


class Gated(Base):
    """Kept and pruned layers take turns, and meet in a product."""

    def forward(self, x):
        gate = self.side(self.stem(x)).softmax(-1)
        h = torch.stack([self.body(x), self.head(x), self.stem(x)], -1)
        return (h * gate.unsqueeze(-2)).sum(-1), gate, gate.argmax(-1)


class HyperNet(Base):
    """A kept layer makes a weight of another."""

    def forward(self, x):
        made = self.stem.weight @ self.body.weight
        return self.head(F.linear(x, made)), made, self.stem.weight.T @ self.stem.weight


class StopsGradients(Base):
    """A target that does not learn, of the same weights."""

    def forward(self, x):
        h = self.body(self.stem(x))
        target = self.body(self.stem(x.flip(0))).detach()
        return self.head(h), F.mse_loss(h, target), self.side(self.stem(x)).detach(), h


KINDS = [
    TwoTowers,
    TiedAcross,
    Loop,
    DeepSupervision,
    HeadsByMode,
    ReturnsItsBuffers,
    ReturnsRecords,
    Gated,
    HyperNet,
    StopsGradients,
]
RULES = {
    "as kept": ("", (1, 0)),
    "shares": ("update rest by 0.3 * sparse + 0.7 * dense", (0.3, 0.7)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("rest", RULES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_losses_and_every_gradient_equal_two_plain_copies(kind, rest, training):
    torch.manual_seed(0)
    words, shares = RULES[rest]
    model = kind().double()
    worst = worst_difference(
        model,
        inputs=tokens,
        losses=weighted_squares,
        prune='"body", "head"',
        keep="",
        updates=f"update kept by sparse update pruned by dense {words}",
        shares={"kept": (1, 0), "pruned": (0, 1), "rest": shares},
        steps=3,
        training=training,
    )
    assert worst < 1e-9


def tokens(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, 3, WIDTH, dtype=torch.float64, generator=generator),), {}
