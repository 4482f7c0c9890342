"""Nets of which a part, or all, stays one call of the graph."""

import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
from torch import nn

WIDTH, TOKENS = 8, 5
Pair = namedtuple("Pair", "scores features")


@dataclass
class Output:
    scores: torch.Tensor
    features: torch.Tensor


class Around(nn.Module):
    """A linear layer, `part` called by `call`, a linear layer."""

    def __init__(self, part, call=lambda part, x: part(x)):
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.part = part
        self.after = nn.Linear(WIDTH, WIDTH)
        self.call = call

    def forward(self, x):
        return self.after(self.call(self.part, self.before(x)))


class Gate(nn.Module):
    """Goes through its children where the values say so; its norm has statistics."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(TOKENS), nn.ReLU(inplace=True)
        )
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if x.sum() > 0:
            return self.other(x)
        for child in self.body.children():
            x = child(x)
        return x


class Root(nn.Sequential):
    """Cannot be traced itself, and goes through its own children."""

    def __init__(self):
        super().__init__(
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(TOKENS), nn.Tanh(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, x):
        for child in self:
            x = child(x)
            if x.abs().max() > 1e3:
                return x
        return x


class Doubles(nn.Module):
    """Has one module under two names, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(TOKENS))
        self.two = self.one
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.last(self.two(self.one(x))) if x.sum() != 0 else x


class Words(nn.Module):
    """Numbers to numbers by an embedding whose weight is the last layer's, too."""

    def __init__(self, middle, is_last_inside=False):
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.middle = middle
        last = nn.Linear(WIDTH, 20, bias=False)
        last.weight = self.embedding.weight
        self.last = Branch(last) if is_last_inside else last

    def forward(self, numbers):
        return self.last(self.middle(self.embedding(numbers)))


class Branch(nn.Module):
    """Decides by values, and does the same either way."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.sum() != 0 else self.part(x + 1)


class Fork(nn.Module):
    """Two inputs, one of them by name only, a flag; an output in the structure `make` makes."""

    def __init__(self, make):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.make = make

    def forward(self, x, *, other=None, scale=1.0):
        x = self.one(x) if other is None else self.one(x) * other
        return self.make(self.two(x) * scale, x)


class Detects(nn.Module):
    """A list of images of any sizes; with targets a dictionary of losses, else one for each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, images, targets=None):
        images = torch.stack([image[:, :4, :4] for image in images])
        boxes = self.head(self.norm(self.conv(images)).mean((2, 3)))
        if not self.training:
            return [{"box": box} for box in boxes]
        wanted = torch.stack([target["box"] for target in targets])
        return {"loss_box": (boxes - wanted).square().mean()}


class Habit(nn.Module):
    """Two linear layers, with something between that a graph cannot keep."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("offset", torch.full((WIDTH,), 0.1))
        self.calls, self.last, self.kept = 0, None, []
        self.between = between

    def forward(self, x):
        return self.two(self.between(self, self.one(x)))


def counts_its_calls(net, x):
    net.calls += 1
    return x * min(net.calls, 1)


def replaces_a_buffer(net, x):
    net.offset = 0.5 * net.offset + 0.1 * x.detach().mean((0, 1))
    return x + net.offset


def replaces_a_buffer_by_a_larger_one(net, x):
    if net.offset.shape != x.shape:
        net.offset = torch.full_like(x, 0.2, requires_grad=False).detach()
    return x + net.offset


def draws_in_python(net, x):
    return x * random.random()


def draws_for_no_tensor(net, x):
    return x * torch.rand(1).item()


def learns_nothing_before(net, x):
    with torch.no_grad():
        y = net.one(x)
    return x + y


def remembers_the_last_call(net, x):
    if net.last is not None:
        x = x + 0 * net.last
    net.last = x.detach()
    return x


def collects(net, x):
    net.kept.append(x.detach())
    del net.kept[:-3]
    return x


def sets_a_field_of_a_tensor(net, x):
    x = x * 1
    x.scale = 2.0
    return x * x.scale


def sets_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.nn.functional.linear(x.float(), net.two.weight.float())
    return x + y.to(x.dtype)


HABITS = (
    counts_its_calls,
    replaces_a_buffer,
    replaces_a_buffer_by_a_larger_one,
    draws_in_python,
    draws_for_no_tensor,
    learns_nothing_before,
    remembers_the_last_call,
    collects,
    sets_autocast,
    sets_a_field_of_a_tensor,
)
SHAPES = {
    "tuple": lambda one, two: (one, two),
    "list": lambda one, two: [one, {"inner": two}],
    "dict": lambda one, two: {"out": one, "aux": two},
    "ordered": lambda one, two: OrderedDict(out=one, aux=two),
    "namedtuple": Pair,
    "dataclass": Output,
}
