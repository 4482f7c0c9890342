"""The compiled step equals the plainly written two-forward step: outputs, losses, gradients."""

import pytest
import torch
from support.comparison import worst_difference
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from dcil_dsl.zoo import build_model

NORMS = "private BatchNorm2d"
HEAD = "private last Linear"


def small_vgg16_bn():
    """vgg16_bn with its classifier cut from 124 to 1 million weights."""
    model = models.vgg16_bn(num_classes=10)
    model.classifier[0] = nn.Linear(512 * 7 * 7, 32)
    model.classifier[3] = nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 10)
    return model


def small_vit_b_16():
    """vit_b_16 with 2 of its 12 blocks, narrow."""
    return models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10, dropout=0.1)


def small_convnext():
    """convnext_tiny with 2 of the 9 blocks of its longest stage, a quarter as wide."""
    stages = [(24, 48, 2), (48, 96, 2), (96, 192, 2), (192, None, 2)]
    return models.ConvNeXt([CNBlockConfig(*stage) for stage in stages], 0.1, num_classes=10)


def small_swin():
    """swin_t with 2 of the 6 blocks of its longest stage, a quarter as wide."""
    return models.SwinTransformer(
        [4, 4],
        24,
        [2, 2, 2, 2],
        [3, 6, 12, 24],
        [7, 7],
        stochastic_depth_prob=0.2,
        num_classes=10,
    )


def torchvision_model(name):
    return lambda: models.get_model(name, weights=None, num_classes=10)


# At 64 px the last stage of each still has four positions: batch norm over a single position
# of a few images divides by almost nothing and makes rounding errors large.
CASES = {
    "resnet18": (torchvision_model("resnet18"), 64, "Conv2d", f"{NORMS}, last Linear"),
    "resnet50": (torchvision_model("resnet50"), 64, "Conv2d", f"{NORMS} {HEAD}"),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), 64, "Conv2d", f"{NORMS} {HEAD}"),
    "densenet121": (torchvision_model("densenet121"), 64, "Conv2d", f"{NORMS} {HEAD}"),
    "vgg16_bn": (small_vgg16_bn, 64, "Conv2d, Linear except last Linear", f"{NORMS} {HEAD}"),
    "efficientnet_b0": (torchvision_model("efficientnet_b0"), 64, "Conv2d", f"{NORMS} {HEAD}"),
    "regnet_y_400mf": (torchvision_model("regnet_y_400mf"), 64, "Conv2d", f"{NORMS} {HEAD}"),
    "convnext_tiny": (
        small_convnext,
        64,
        "Conv2d, Linear except last Linear",
        f"private LayerNorm2d {HEAD}",
    ),
    "vit_b_16": (
        small_vit_b_16,
        64,
        "Linear, MultiheadAttention except last Linear",
        f"private LayerNorm {HEAD}",
    ),
    "swin_t": (
        small_swin,
        64,
        "Linear except last Linear",
        f"private LayerNorm {HEAD}",
    ),
    "resnet32": (lambda: build_model("dcil:resnet32"), 32, "Conv2d", f"{NORMS} {HEAD}"),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_losses_and_every_gradient_equal_the_reference(name, training):
    build, size, prune, private = CASES[name]
    torch.manual_seed(0)
    model = build().double()
    steps = 5 if name in ("resnet32", "vit_b_16") else 3
    # Two images are enough, but for statistics that are taken over the batch.
    batch = 4 if training and "BatchNorm2d" in private else 2
    worst = worst_difference(
        model, size, prune=prune, private=private, training=training, steps=steps, batch=batch
    )
    assert worst < 1e-9


def test_shared_norms_and_a_shared_head_see_both_paths():
    torch.manual_seed(0)
    model = build_model("dcil:resnet20").double()
    assert worst_difference(model, 16, prune="Conv2d", private="") < 1e-9


def test_any_shares_are_routed_as_the_update_rules_say():
    torch.manual_seed(0)
    worst = worst_difference(
        build_model("dcil:resnet20").double(),
        16,
        prune="Conv2d",
        keep='keep first Conv2d  keep "layer1"',
        private=NORMS,
        updates="""update kept   by sparse + 0.5 * dense
                   update pruned by 0.9 * dense + 0.1 * sparse
                   update rest   by 0.25 * sparse + 2 * dense""",
        shares={"kept": (1, 0.5), "pruned": (0.1, 0.9), "rest": (0.25, 2)},
    )
    assert worst < 1e-9
