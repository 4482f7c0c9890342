"""The random numbers of one path, drawn again by another; others drawn apart from all.

In:   the state of the generators where the first path begins; a seed.
Out:  the same state where another path begins, so that it draws what the first has drawn; numbers
      from the seed on that leave no trace.
Not:  no numbers are drawn here; a path with random numbers of its own needs none of this.

The generators are torch's on the CPU and on every CUDA device that is in use, and Python's own and
numpy's, which opaque modules may ask. A process that has not imported numpy draws nothing from it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def random_state() -> tuple:
    """What the generators will draw from here on."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy is not None else None
    return torch.get_rng_state(), cuda, random.getstate(), of_numpy


def draw_again(state: tuple) -> None:
    """Let the generators draw once more what they have drawn since `state` was read."""
    cpu, cuda, python, of_numpy = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    random.setstate(python)
    if of_numpy is not None:
        sys.modules["numpy"].random.set_state(of_numpy)


def seed_generators(seed: int) -> None:
    """Start all of the generators from a seed.

    Not torch.manual_seed, which records a stack at each call for devices that are not in use yet,
    and would seed them for the moment when they are.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)  # it takes no larger one


@contextmanager
def drawn_apart(seed: int | None = None) -> Iterator[None]:
    """While the `with` is open numbers come from `seed`, or where it is None from where they are;
    afterwards the generators go on as if nothing had been drawn.

    Not torch's fork_rng: it takes the generators of all devices there are, and so starts the ones
    that are not in use.
    """
    state = random_state()
    if seed is not None:
        seed_generators(seed)
    try:
        yield
    finally:
        draw_again(state)


# Nobody reads what it returns; a graph that is cleaned of unread values keeps it all the same.
torch.fx.node.has_side_effect(draw_again)
