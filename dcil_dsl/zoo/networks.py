"""The networks that no library carries: the CIFAR ResNets, and a ViT small enough for digits.

The ResNets are those of He et al. 2016 (arXiv:1512.03385, section 4.2) as DCIL's authors have them
(Jangho-Kim/DCIL-pytorch): three stages of 16, 32 and 64 planes; where a stage changes the width,
the shortcut is a 1x1 convolution with batch norm, not the paper's padded identity. The ViT is that
of Dosovitskiy et al. 2021 (arXiv:2010.11929); the smallest one of the libraries is ten times as
large. All start from fresh weights; the ResNets take images of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dcil_dsl.zoo.detector import small_fcos
from dcil_dsl.zoo.physics import PoissonNet

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """y = relu(x' + bn(conv3x3(relu(bn(conv3x3(x)))))), x' the shortcut of x."""

    expansion = 1

    def __init__(self, num_inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(num_inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1 to `planes`, 3x3, 1x1 to 4 * planes; the stride is the 3x3's."""

    expansion = 4

    def __init__(self, num_inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(num_inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `num_blocks` blocks, average pooling, one Linear.

    Images (B, num_channels, H, W) -> logits (B, num_classes). For CIFAR H = W = 32.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: int,
        num_classes: int = 10,
        num_channels: int = 3,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        width = WIDTHS[0]
        stages = []
        for planes, stride in zip(WIDTHS, (1, 2, 2)):
            blocks = []
            for position in range(num_blocks):
                blocks.append(block(width, planes, stride if position == 0 else 1))
                width = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _shortcut(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    if stride == 1 and num_inputs == num_outputs:
        return nn.Identity()
    convolution = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_outputs))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (B, tokens, width) in and out."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        inner = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SmallViT(nn.Module):
    """Patches, learned positions, `num_blocks` blocks, the mean over all tokens, one Linear.

    Images (B, num_channels, image_size, image_size) -> logits (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_channels: int = 3,
        image_size: int = 16,
        patch_size: int = 4,
        width: int = 64,
        num_blocks: int = 3,
        num_heads: int = 8,
    ):
        super().__init__()
        self.patches = nn.Conv2d(num_channels, width, patch_size, patch_size)
        num_tokens = (image_size // patch_size) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class MLP(nn.Module):
    """Two hidden layers with ReLU, for tabular data: (B, features) to (B, num_classes)."""

    def __init__(self, num_classes: int = 1, features: int = 10, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(x))
        return y


# The paper counts 6n + 2 layers, without the convolutions of the shortcuts. What the authors call
# "ResNet-56" is a bottleneck network of 83 such layers, so it has another name here.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{n}": partial(CifarResNet, BasicBlock, (n - 2) // 6) for n in (20, 32, 44, 56, 110)},
    "resnet56_bottleneck": partial(CifarResNet, Bottleneck, 9),
    "small_vit": SmallViT,
    "mlp": MLP,
    "poisson": PoissonNet,
    "small_fcos": small_fcos,
}
