"""Numbers that a forward draws from no tensor are noticed, whichever generator they come from."""

import random

import numpy
import pytest
import torch

from dcil_dsl.model.side_effects import Randomness

DRAWS = {
    "torch": lambda: torch.rand(1),
    "python": random.random,
    "numpy": numpy.random.rand,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_number_that_is_drawn_is_noticed_and_drawn_again_after_it_was_put_back(draw):
    before = Randomness()
    assert not before.moved()
    first = draw()
    assert before.moved()
    before.restore()
    assert not before.moved() and draw() == first


def test_a_number_that_a_gpu_draws_is_noticed(monkeypatch):
    """Its generators' states, as torch would give them: no GPU is asked."""
    states = [torch.tensor([7]), torch.tensor([7])]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [s.clone() for s in states])
    before = Randomness()
    assert not before.moved()
    states[1] += 1
    assert before.moved()
