"""Whole networks on the sparse kernels against float64 torch."""

import pytest
import torch
import torchvision
from support.cpu_nets import (
    all_sparse,
    assert_as_exact_as_torch,
    network_of,
    network_of_layers,
    pruned,
)
from torch import nn
from torchvision.models.resnet import Bottleneck

from dcil_dsl.extras.cpu.network import CpuNetwork
from dcil_dsl.zoo import build_model


def images(batch, size):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


NETWORKS = {  # smaller than their usual size, with layers of each kind; test_cpu_full.py has that
    "basic blocks": lambda: build_model("dcil:resnet20", 10),
    "bottlenecks": lambda: torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10),
    "inverted residuals": lambda: torchvision.models.mobilenet_v2(width_mult=0.35),
}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("basic blocks", 0.0),
        ("basic blocks", 0.8),
        ("bottlenecks", 0.9),
        ("inverted residuals", 0.95),
    ],
)
def test_a_convolutional_network_is_as_exact_as_torch(name, share):
    model = pruned(NETWORKS[name](), share)
    exported = network_of(model, (images(1, 33),))
    for kernels in ("c", "generated"):
        network = CpuNetwork(exported.program, exported.stored, kernels)
        for batch in (1, 3):
            assert_as_exact_as_torch(model, network, (images(batch, 33),), 1e-6)
    assert all_sparse(exported)


def test_a_vision_transformer_is_as_exact_as_torch():
    model = torchvision.models.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=10)
    model = pruned(model, 0.9)
    network = network_of(model, (images(1, 32),))
    assert all_sparse(network)
    for batch in (1, 3):
        assert_as_exact_as_torch(model, network, (images(batch, 32),), 1e-6)


def test_a_sentence_encoder_is_as_exact_as_torch():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=99,
    )
    model = pruned(transformers.BertModel(config), 0.9)
    ids = torch.randint(0, 99, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    network = network_of(model, {"input_ids": ids[:2], "attention_mask": mask[:2]})
    assert all_sparse(network)
    for batch in (1, 2, 4):
        given = {"input_ids": ids[:batch], "attention_mask": mask[:batch]}
        assert_as_exact_as_torch(model, network, given, 1e-6)
        assert set(network(**given)) == {"last_hidden_state", "pooler_output"}


@pytest.mark.parametrize("kernels", ["c", "generated"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 9])
def test_threads_and_batches_do_not_change_the_numbers(batch, kernels):
    """Each output is summed in the same order, whichever thread computes it."""
    layers = [
        pruned(nn.Conv2d(3, 16, 3, padding=1), 0.5),
        nn.MaxPool2d(2),
        pruned(nn.Conv2d(16, 40, 3, stride=2), 0.9),
    ]
    x = images(batch, 40)
    network = network_of_layers(*layers, shape=x.shape)
    network.kernels, network.threads = kernels, 1
    expected = torch.cat([network(image) for image in x.split(1)])
    for threads in (1, 2, 3):
        network.threads = threads
        assert torch.equal(network(x), expected)


def test_a_second_call_does_not_see_the_first_one():
    """Planes are used again; what lies around an image has to be zero each time."""
    model = pruned(build_model("dcil:resnet20", 10), 0.9)
    network = network_of(model, (images(1, 40),))
    x = images(2, 40)
    first = network(x)
    poison = torch.full_like(x, float("nan"))
    assert network(poison).isnan().all()
    assert torch.equal(network(x), first)


def test_an_output_stays_as_it_is_when_the_network_is_called_again():
    model = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5)
    network = network_of(model, (images(1, 12),))
    first = network(images(1, 12))
    before = first.clone()
    network(images(1, 12) + 1)
    assert torch.equal(first, before)


class Branches(nn.Module):
    """Values that are read twice, returned, and joined by functions of torch."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.three = nn.Conv2d(8, 8, 1, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.tied = nn.Linear(16, 16)

    def forward(self, x):
        a = torch.relu(self.one(x))
        b, c = self.two(a), self.three(a)
        joined = self.norm(torch.cat([b + c, c], 1))
        mean = joined.mean((2, 3))
        return {"a": a, "pair": (b, [self.tied(torch.tanh(self.tied(mean)))]), "none": None}


@pytest.mark.parametrize("kernels", ["c", "generated", "torch", "auto"])
def test_values_that_are_read_twice_and_structures_that_are_returned(kernels):
    model = pruned(Branches(), 0.6)
    network = network_of(model, (images(2, 15),), kernels=kernels)
    given = network(images(3, 15))
    assert given["none"] is None
    assert isinstance(given["pair"], tuple) and isinstance(given["pair"][1], list)
    assert_as_exact_as_torch(model, network, (images(3, 15),), 1e-6)
