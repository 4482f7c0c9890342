"""A forward that reads its weights where a tracer does not see it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from torch import nn

from dcil_dsl.model import trace_model

WIDTH = 6


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.full((WIDTH,), 0.7))
        self.head = nn.Linear(WIDTH, 4)


class OfItsStateDict(Base):
    def forward(self, x):
        return self.head(self.a(x).relu() + F.linear(x, self.state_dict()["a.weight"]))


class OfACopyOfItsStateDict(Base):
    def forward(self, x):
        kept = {name: value.clone() for name, value in self.state_dict().items()}
        return self.head(self.a(x).relu() * kept["a.weight"].std() + kept["b.bias"])


class OfItsTables(Base):
    def forward(self, x):
        weight = self.a._parameters["weight"].detach() * 2
        return self.head(F.linear(self.b(x), weight) + self._buffers["scale"] * 3)


class OfDetachedParameters(Base):
    def forward(self, x):
        size = sum(p.detach().abs().mean() for p in self.parameters())
        return self.head(self.a(self.b(x)) / size)


class OfData(Base):
    def forward(self, x):
        first = next(self.a.parameters()).data
        return self.head(self.b(x) + x @ first.T)


class OfTheNormsOfLayers(Base):
    def forward(self, x):
        norms = [torch.linalg.vector_norm(p).detach() for p in self.b.parameters()]
        return self.head(self.a(x) / torch.stack(norms).sum() + self.b(x))


class OfNumbers(Base):
    def forward(self, x):
        size = float(next(self.a.parameters()).max()) + self.state_dict()["b.weight"][0, 0].item()
        first, *_ = next(self.b.parameters()).tolist()[0]
        return self.head(self.a(x) * size + self.b(x) * first)


def rows(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(5, WIDTH, generator=generator, dtype=torch.float64),), {}


KINDS = [
    OfItsStateDict,
    OfACopyOfItsStateDict,
    OfItsTables,
    OfDetachedParameters,
    OfData,
    OfTheNormsOfLayers,
    OfNumbers,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_weights_read_past_the_tracer_are_those_of_the_path(kind):
    torch.manual_seed(0)
    worst = worst_difference(
        kind().double(),
        inputs=rows,
        losses=weighted_squares,
        prune='"a", "b"',
        keep="",
        steps=4,
    )
    assert worst < 1e-9


class AsksForTypes(Base):
    def forward(self, x):
        first = next(self.parameters())
        x = x.to(first.dtype).to(first.device).view(-1, first.shape[1])
        assert first in {first: 1} and first.is_floating_point() and first.requires_grad
        return self.head(self.a(x) * len(list(self.parameters())) + first.numel())


def test_a_question_for_the_type_of_a_weight_reads_none():
    assert not trace_model(AsksForTypes(), torch.randn(5, WIDTH)).opaque


class WritesAverages(Base):
    """A frozen target that follows a layer, written by loops over parameters."""

    def __init__(self):
        super().__init__()
        self.target = copy.deepcopy(self.a).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for ours, theirs in zip(self.a.parameters(), self.target.parameters(), strict=True):
                theirs.mul_(0.9).add_(ours, alpha=0.1)
                theirs.data = theirs.data + 0
        return self.head(self.a(x) - self.target(x))


def test_tracing_writes_to_no_weight_of_its_copy():
    model = WritesAverages()
    traced = trace_model(model, torch.randn(5, WIDTH))
    for name, parameter in traced.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
