"""On the device too, the compiled step equals the plainly written two-forward step."""

import pytest
import torch
from support.comparison import worst_difference
from torchvision import models

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_resnet18_equals_the_reference(device, training):
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).double().to(device)
    worst = worst_difference(
        model,
        64,
        prune="Conv2d",
        private="private BatchNorm2d, last Linear",
        training=training,
        steps=3,
    )
    assert worst < 1e-9


def test_a_vision_transformer_with_dropout_equals_the_reference(device):
    torch.manual_seed(0)
    model = models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10, dropout=0.1)
    worst = worst_difference(
        model.double().to(device),
        64,
        prune="Linear, MultiheadAttention except last Linear",
        private="private LayerNorm private last Linear",
        steps=3,
    )
    assert worst < 1e-9
