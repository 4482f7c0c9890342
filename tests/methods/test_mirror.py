"""HAM's mirror step against the step written plainly in float64."""

import math

import torch
from safetensors.torch import load_file
from support.plainly import LR, gradients, largest, sgd
from support.tiny_job import NET, RECIPE
from support.two_layers import KEEP, KEPT, assert_same, batches, ours, state

import dcil_dsl as dcil
from dcil_dsl.data import open_dataset
from dcil_dsl.training.average import Average
from dcil_dsl.training.step import MirroredStep
from dcil_dsl.words.step import Ham

RULE = "prune Linear to global(75%) { refresh = 1 step }"


class OptimizerStep:
    """The step inside: the optimizer alone."""

    def __init__(self, optimizer):
        self.optimizer, self.memory, self.average = optimizer, {}, Average({}, {})

    @property
    def plain(self):
        return self

    def apply(self, rate):
        self.optimizer.step()


def mirrored(plan, optimizer):
    MirroredStep(OptimizerStep(optimizer), plan.train.mirror).apply(LR)


def test_ham_multiplies_every_weight_after_the_optimizers_step():
    dual = ours(RULE, KEPT, train="mirror = ham(alpha=20, beta=0.01)", apply=mirrored)
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)
        seen = [w * m for w, m in zip(weights, masks)]
        grads = [g * m for g, m in zip(gradients(x, y, seen), masks)]
        sgd(weights, velocities, grads)
        for w, g in zip(weights, grads):
            w.mul_(torch.exp(-LR * (20 * w.sign() * g + 0.01)))
    assert_same(dual, weights)


def test_ham_keeps_zeros_and_holds_its_exponent_within_five():
    weight = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    gradient = torch.tensor([9.0, 1e6, 1e6], dtype=torch.float64)
    seen = weight * Ham().factor(weight, gradient, 0.1)
    expected = torch.tensor([0.0, torch.e**-5, -(torch.e**5)], dtype=torch.float64)
    assert torch.allclose(seen, expected)


def test_after_the_first_step_of_a_run_a_weight_is_the_optimizers_times_the_factor(tmp_path):
    data = open_dataset("synthetic", num_train=64, num_val=64, image_size=32)
    options = {"device": "cpu", "workers": 0, "warn": lambda warning: None}
    trained = []
    for name, more in (("plain", ""), ("ham", "mirror = ham(alpha=0, beta=0.1)")):
        recipe = dcil.loads(RECIPE.replace("epochs    = 2ep", f"epochs = 2ep {more}"))
        dcil.train(recipe, net_of(), data, out=tmp_path / name, max_steps=1, **options)
        trained.append(load_file(tmp_path / name / "checkpoint" / "last.safetensors"))
    plain, ham = ({n: t for n, t in run.items() if n.startswith("model/")} for run in trained)
    assert len(plain) > 6
    for name, weight in plain.items():
        is_weight = name.endswith("weight") and weight.dim() >= 2
        factor = math.exp(-0.05 * 0.1) if is_weight else 1.0
        assert torch.allclose(ham[name].double(), weight.double() * factor, rtol=1e-6), name


def net_of():
    place = {}
    exec(NET, place)
    torch.manual_seed(0)
    return place["Net"]()
