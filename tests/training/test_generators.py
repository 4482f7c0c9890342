"""A step draws the same random numbers from torch, Python and numpy, whatever was drawn before."""

from __future__ import annotations

import os
import random
import signal

import numpy
import pytest
import torch
from support.same_runs import assert_same
from support.tiny_run import TinyData, TinyNet, in_child, tiny_plan
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.training.machine import Options
from dcil_dsl.training.run import create_run, resume_run
from dcil_dsl.training.trainer import train

DRAWS = {
    "python": random.random,
    "numpy": lambda: numpy.random.rand(),
    "torch": lambda: torch.rand(()).item(),
}


class Kept:
    """A generator that the model keeps; each run has a model, and so a generator, of its own."""

    def __init__(self, generator, draw):
        self.generator, self.draw = generator, draw

    def __call__(self):
        return self.draw(self.generator)


KEPT = {
    "kept of torch": lambda: Kept(torch.Generator(), lambda g: torch.rand((), generator=g).item()),
    "kept of numpy": lambda: Kept(numpy.random.default_rng(), lambda g: float(g.random())),
    "old of numpy": lambda: Kept(numpy.random.RandomState(), lambda g: g.rand()),
    "kept of python": lambda: Kept(random.Random(), lambda g: g.random()),
}


class Noisy(nn.Module):
    """Opaque, as its forward draws from a generator that a graph does not see."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * (0.5 + self.draw())


def noisy_dual(draw, plan):
    torch.manual_seed(0)
    net = TinyNet()
    net.drop = Noisy(draw)
    return compile_plan(plan, net)


def run(folder, draw, before=lambda batch: None, resume=False):
    plan = tiny_plan()
    made = resume_run(folder, plan) if resume else create_run(plan, "", "", folder)
    data, val = TinyData(before=before), TinyData(31, seed=1)
    train(noisy_dual(draw, plan), data, val, made, Options(resume=resume))


def die_at_12(batch):
    if batch == 12:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("generator", [*DRAWS, *KEPT])
def test_a_killed_and_resumed_run_of_a_model_that_draws_ends_with_the_same_bits(
    tmp_path, generator
):
    make = KEPT.get(generator, lambda: DRAWS[generator])
    random.seed(1)
    numpy.random.seed(1)
    run(tmp_path / "straight", make())
    killed = in_child(lambda: run(tmp_path / "run", make(), die_at_12))
    assert killed == -signal.SIGKILL
    random.seed(2)
    numpy.random.seed(2)
    run(tmp_path / "run", make(), resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_training_leaves_the_generators_of_its_caller_as_they_were(tmp_path):
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    expected = [draw() for draw in DRAWS.values()]
    random.seed(5)
    numpy.random.seed(5)
    plan = tiny_plan()
    dual = noisy_dual(random.random, plan)
    made = create_run(plan, "", "", tmp_path / "run")
    torch.manual_seed(5)
    train(dual, TinyData(), TinyData(31, seed=1), made, Options(max_steps=3))
    assert [draw() for draw in DRAWS.values()] == expected
