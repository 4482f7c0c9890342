"""A detector that is small enough for a CPU: torchvision's FCOS on five convolutions.

In:   the number of classes, the background included.
Out:  torchvision's class with its own losses and boxes; fresh weights.
Not:  no pyramid of features: one map, for objects of one size.
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.diagnostics.optional import library

detection = library("torchvision.models.detection")
anchors = library("torchvision.models.detection.anchor_utils")


def small_fcos(num_classes: int = 11, image_size: int = 64, width: int = 64) -> nn.Module:
    """FCOS (Tian et al. 2019, arXiv:1904.01355) for objects of about 16 pixels, at stride 4."""
    sizes = [3, width // 2, width, width, width, width]
    layers = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        stride = 2 if i < 2 else 1
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    backbone = nn.Sequential(*layers)
    setattr(backbone, "out_channels", width)  # noqa: B010, as FCOS reads it
    model: nn.Module = detection.FCOS(
        backbone,
        num_classes=num_classes,
        min_size=image_size,
        max_size=image_size,
        anchor_generator=anchors.AnchorGenerator(((16,),), ((1.0,),)),
    )
    return model
