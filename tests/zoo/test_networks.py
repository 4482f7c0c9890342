"""The CIFAR ResNets are the authors' own, to the weight."""

import pytest
import torch
from torch import fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo import build_model
from dcil_dsl.zoo.networks import NETWORKS


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(
    "name, num_weights",
    [
        ("resnet20", 270_256),
        ("resnet32", 463_792),  # the authors' N
        ("resnet56", 850_864),
        ("resnet56_bottleneck", 853_936),  # the authors' "ResNet-56"
    ],
)
def test_convolution_weights_are_as_many_as_in_the_authors_networks(name, num_weights):
    assert sum(c.weight.numel() for c in convolutions(build_model(f"dcil:{name}"))) == num_weights


def test_resnet32_has_1232_filters_and_33_convolutions():
    layers = convolutions(build_model("dcil:resnet32"))
    assert sum(layer.out_channels for layer in layers) == 1232
    assert len(layers) == 33  # 31 and two shortcuts


def test_resnet32_carries_2464_batch_norm_and_650_linear_parameters():
    model = build_model("dcil:resnet32")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 2464
    assert sum(p.numel() for p in model.fc.parameters()) == 650


def test_convolutions_start_at_kaiming_normal_of_the_fan_out():
    torch.manual_seed(0)
    for layer in convolutions(build_model("dcil:resnet32"))[-5:]:
        fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("resnet")])
def test_each_can_be_traced_and_takes_classes_channels_and_any_size(name):
    model = build_model(f"dcil:{name}", num_classes=7, options={"num_channels": 1}).eval()
    x = torch.randn(2, 1, 8, 12)
    assert model(x).shape == (2, 7)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_a_depth_that_does_not_exist_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean `dcil:resnet32`"):
        build_model("dcil:resnet33")
