"""Small versions of the libraries' networks, in float64: random filters and heads set to zero."""

from functools import partial

import pytest
import torch
from support.zeroed import enliven, numel, zero_heads, zero_rows
from torch import nn
from torchvision import models as tv
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.googlenet import Inception
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.load import rebuild_compact
from dcil_dsl.zoo import build_model

MBCONV = [MBConvConfig(1, 3, 1, 16, 8, 1, 1.0, 1.0), MBConvConfig(4, 3, 2, 8, 16, 2, 1.0, 1.0)]
SHUFFLE = ([2, 1, 1], [8, 16, 32, 64, 64])
SWIN = dict(patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=[2, 2])
VIT = dict(
    image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
)


def inception():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        Inception(8, 4, 6, 8, 4, 6, 4),
        nn.MaxPool2d(2),
        Inception(22, 4, 6, 8, 4, 6, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(22, 5),
    )


def vgg():
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(
        features,
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(8 * 49, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 5),
    )


# What builds it, and the most of its parameters that may be left.
NETWORKS = {
    "resnet20": (partial(build_model, "dcil:resnet20", 5), 0.8),
    "resnet": (partial(tv.ResNet, Bottleneck, [2, 1, 1, 1], num_classes=5), 0.7),
    "vgg": (vgg, 0.5),
    "densenet": (partial(tv.DenseNet, 8, (2, 2), 16, num_classes=5), 0.5),
    "inception": (inception, 0.6),
    "squeezenet": (partial(build_model, "torchvision:squeezenet1_1", 5), 0.5),
    "mobilenet_v2": (partial(tv.MobileNetV2, 5, 0.5, [[1, 16, 1, 1], [4, 24, 2, 2]]), 0.7),
    "efficientnet": (partial(tv.EfficientNet, MBCONV, 0.0, num_classes=5), 0.8),
    "shufflenet": (partial(tv.ShuffleNetV2, *SHUFFLE, num_classes=5), 0.8),
    "regnet": (
        partial(tv.RegNet, BlockParams.from_init_params(4, 16, 20.0, 2.2, 8), 5),
        1.0,
    ),
    "convnext": (
        partial(tv.ConvNeXt, [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=5),
        0.8,
    ),
    "swin": (partial(tv.SwinTransformer, **SWIN, num_classes=5), 0.9),
    "vit": (partial(tv.VisionTransformer, **VIT), 0.9),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_its_dead_rows_is_smaller_and_computes_the_same(name):
    build, part = NETWORKS[name]
    torch.manual_seed(0)
    model = zero_heads(zero_rows(enliven(build())), 0.5).double()
    x = torch.randn(2, 3, 32, 32).double()
    result = compact(model, (x,), num_inputs=2)
    assert result.difference < 1e-12
    assert numel(result.model) < part * numel(model)
    other = 2 * x.flip(-1)[:1]
    with torch.no_grad():
        expected = model(other)
        rebuilt = rebuild_compact(result.shapes, result.tensors, build().double())
        assert torch.equal(rebuilt(other), result.model(other))
        torch.testing.assert_close(rebuilt(other), expected, rtol=1e-10, atol=1e-10)
        expanded = build().double().eval()
        expanded.load_state_dict(result.expand(), strict=True)
        torch.testing.assert_close(expanded(other), expected, rtol=1e-10, atol=1e-10)


def test_random_masks_on_a_network_of_everything_never_change_what_it_computes():
    """Eight draws of which rows, columns and norms are zero, residuals and groups in between."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 3, padding=1, groups=2)
            self.c, self.d = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 8, 1)
            self.group, self.out = nn.GroupNorm(4, 8), nn.Linear(8 * 16, 3)

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            y = x + self.b(self.a(x).relu())
            y = self.d(torch.cat([y, self.c(x)], 1))
            return self.out(nn.functional.avg_pool2d(self.group(y) * x.sigmoid(), 2).flatten(1))

    smaller = 0
    for seed in range(8):
        torch.manual_seed(seed)
        model = enliven(Net(), seed).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[torch.rand(len(parameter)) < 0.3] = 0.0
                if parameter.dim() > 1:
                    parameter[:, torch.rand(parameter.shape[1]) < 0.2] = 0.0
        result = compact(model, (torch.randn(2, 3, 8, 8).double(),), num_inputs=2)
        assert result.difference < 1e-12
        smaller += numel(result.model) < numel(model)
    assert smaller >= 4
