"""dual.train() and dual.eval() leave every module in the mode that the model's own would."""

import pytest
import torch
from support.comparison import compile_text, worst_difference
from support.nets import images
from support.two_paths import two_paths
from torch import nn

import dcil_dsl as dcil

RECIPE = two_paths("prune Conv2d to 50%", mix="private BatchNorm2d")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Decides(Block):
    """Control flow by numbers: stays one call of the graph."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


class Net(nn.Module):
    block = Block

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.part, self.head = self.block(), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.part(self.bn(self.stem(x))).mean((2, 3)))


class Frozen(Net):
    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        self.part.bn.eval()
        return self


class ReturnsNothing(Net):
    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()


class FrozenBlock(Block):
    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self


class FrozenDecides(Decides, FrozenBlock):
    pass


class FrozenPart(Net):
    block = FrozenBlock


class FrozenWhole(Net):
    block = FrozenDecides


class FrozenAroundWhole(Frozen):
    block = Decides


class OwnMode(Net):
    """The forward reads a mode of its own, and draws where it is on."""

    def train(self, mode=True):
        self.noise = 0.5 if mode else 0.0
        return super().train(mode)

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, self.noise))


NETS = [Frozen, ReturnsNothing, FrozenPart, FrozenWhole, FrozenAroundWhole, OwnMode, Net]


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_every_module_and_its_twin_is_in_the_mode_of_the_models_own_train(kind):
    model = kind()
    dual = compile_text(RECIPE, model, (images(),))
    for mode in (True, False, True):
        dual.train(mode) if mode else dual.eval()
        model.train(mode)
        flags = {name: module.training for name, module in dual.named_modules()}
        for name, module in model.named_modules():
            assert flags[name] == module.training
            assert flags.get(f"{name}__dense", module.training) == module.training
        assert dual.training is mode and dual.original.training == model.training


@pytest.mark.parametrize("private", ["", "private BatchNorm2d"], ids=["shared", "private"])
@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_step_equals_two_plain_copies(kind, training, private):
    torch.manual_seed(0)
    model = kind().double()
    worst = worst_difference(model, 8, prune="Conv2d", private=private, training=training, steps=3)
    assert worst < 1e-9


def test_a_frozen_norm_needs_no_module_kept_opaque():
    plan = dcil.resolve(dcil.loads(RECIPE), Frozen(), 10, (images(),))
    assert plan.opaque == ()


def test_a_norm_put_into_evaluation_by_hand_stays_so_until_train_is_called():
    model = Net()
    model.bn.eval()
    dual = compile_text(RECIPE, model, (images(),))
    assert not dual.bn.training and not dual.bn__dense.training and dual.training
    dual.train()
    assert dual.bn.training and dual.bn__dense.training
