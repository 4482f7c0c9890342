"""The CIFAR ResNets of He et al. 2016 (arXiv:1512.03385, section 4.2), as DCIL's authors have them.

In:   the number of classes and of input channels.
Out:  a freshly initialised network; any image size, for the pooling adapts to it.
Not:  no weights from elsewhere. No library carries these networks, which is why they are here.

Three stages of 16, 32 and 64 planes. Where a stage changes the width, the shortcut is a 1x1
convolution with batch norm (Jangho-Kim/DCIL-pytorch), not the paper's padded identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

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
        return self.relu(y + self.downsample(x))


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
        return self.relu(y + self.downsample(x))


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
        return self.fc(self.avgpool(x).flatten(1))


def _shortcut(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    if stride == 1 and num_inputs == num_outputs:
        return nn.Identity()
    convolution = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_outputs))


# The paper counts 6n + 2 layers, the shortcuts' convolutions left out. The authors' "ResNet-56"
# is a bottleneck net of 83 such layers, another network than the paper's: it has another name.
BUILDERS: dict[str, Callable[..., CifarResNet]] = {
    f"resnet{depth}": partial(CifarResNet, BasicBlock, (depth - 2) // 6)
    for depth in (20, 32, 44, 56, 110)
} | {"resnet56_bottleneck": partial(CifarResNet, Bottleneck, 9)}
