"""What a forward returns is routed like what its layers read: equal to two plain copies."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from torch import Tensor, nn

WIDTH = 6
Pair = namedtuple("Pair", "first second")
KEPT = ("stem", "aux", "state")
RESTS = {
    "as kept": ("", (1, 0)),
    "shares": ("update rest by 0.75 * sparse + 0.25 * dense", (0.75, 0.25)),
    "by dense": ("update rest by dense", (0, 1)),
    "beyond one": ("update rest by 0.5 * sparse + 2 * dense", (0.5, 2)),
}


class Net(nn.Module):
    """What KEPT names is kept, all else is pruned; `body` is the forward, and has what it names."""

    def __init__(self, body):
        super().__init__()
        parts = {
            "stem": nn.Linear(WIDTH, WIDTH),
            "aux": nn.Linear(WIDTH, 3),
            "gate": Gate(),
            "state": nn.LSTM(WIDTH, WIDTH, batch_first=True),
            "last": nn.LSTM(WIDTH, WIDTH, batch_first=True),
        }
        for name in body.__code__.co_names:
            if name in parts:
                self.add_module(name, parts[name])
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("mean", torch.ones(WIDTH))
        self.run = body

    def forward(self, x):
        return self.run(self, x)

    def logits(self, h):
        return self.head(self.body(h).tanh())


class Gate(nn.Module):
    """Control flow by numbers: stays one call of the graph."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


@dataclass
class Record:
    logits: Tensor
    penalty: Tensor


def scale_of_clip(net, x):
    return net.logits(net.stem(x)), net.scale.exp()


def feature_in_front(net, x):
    h = net.stem(x).tanh()
    return net.logits(h), h.sum()


def feature_returned_and_read(net, x):
    h = net.stem(x)
    return {"logits": net.logits(h), "deep": [h, (h, net.aux(h))]}


def kept_head(net, x):
    h = net.stem(x)
    return net.logits(h), net.aux(h)


def penalty_of_a_kept_weight(net, x):
    return net.logits(net.stem(x)), net.stem.weight.pow(2).sum()


def penalty_of_a_pruned_weight(net, x):
    return net.logits(net.stem(x)), net.body.weight.pow(2).sum()


def raw_weights(net, x):
    return net.logits(net.stem(x)), net.body.weight, net.stem.weight, net.scale, net.scale


def the_input(net, x):
    return x, net.logits(net.stem(x)), net.mean, net.aux(x)


def a_tuple_of_pieces(net, x):
    h = net.stem(x)
    return net.logits(h), torch.split(h, 2, dim=-1), h.max(-1)


def a_named_tuple(net, x):
    h = net.stem(x)
    return Pair(net.logits(h), Pair(h, net.scale))


def a_dataclass(net, x):
    h = net.stem(x)
    return Record(net.logits(h), h.square().mean())


def a_tuple_is_read(net, x):
    h, state = net.state(net.stem(x))
    return net.logits(net.last(h, state)[0])


def pieces_are_read(net, x):
    pieces = torch.split(net.stem(x), 2, dim=-1)
    return net.logits(torch.cat(pieces[:2] + (net.body(x)[..., :2],), -1))


def written_after_it_is_made(net, x):
    h = net.stem(x) * 1
    F.relu_(h)
    return net.logits(h), h


def a_module_that_stays_whole(net, x):
    h = net.stem(x)
    return net.head(net.gate(h)), net.aux(h)


def same_twice(net, x):
    h, y = net.stem(x), None
    y = net.logits(h)
    return h, y, h, y


BODIES = [
    scale_of_clip,
    feature_in_front,
    feature_returned_and_read,
    kept_head,
    penalty_of_a_kept_weight,
    penalty_of_a_pruned_weight,
    raw_weights,
    the_input,
    a_tuple_of_pieces,
    a_named_tuple,
    a_dataclass,
    a_tuple_is_read,
    pieces_are_read,
    written_after_it_is_made,
    a_module_that_stays_whole,
    same_twice,
]


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_what_is_returned_learns_by_the_shares_of_rest(body, rest):
    assert differ(Net(body), *RESTS[rest]) < 1e-9


@pytest.mark.parametrize("body", [kept_head, raw_weights], ids=lambda body: body.__name__)
def test_so_it_does_in_evaluation(body):
    assert differ(Net(body), *RESTS["shares"], training=False) < 1e-9


def differ(model, rest, shares, **more):
    torch.manual_seed(0)
    kept = ", ".join(f'"{name}"' for name, _ in model.named_children() if name in KEPT)
    return worst_difference(
        model.double(),
        inputs=tokens,
        losses=weighted_squares,
        keep=f"keep {kept}",
        prune="Linear, LSTM" if hasattr(model, "last") else "Linear",
        updates=f"update kept by sparse update pruned by dense {rest}",
        shares={"kept": (1, 0), "pruned": (0, 1), "rest": shares},
        steps=3,
        **more,
    )


def tokens(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, 3, WIDTH, dtype=torch.float64, generator=generator),), {}
