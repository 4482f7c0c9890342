"""Choose between kernels by running each on this machine.

In:   callables that compute the same.
Out:  the number of the fastest.
Not:  which ones there are is decided where they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

ROUNDS = 5
# Other layers run between two runs of a layer in a network, so its weights come from a far cache.
_between = torch.zeros(2**20)


def fastest(candidates: Sequence[Callable[[], object]]) -> int:
    """The candidate with the least time, run in turn so that a busy moment meets all of them."""
    if len(candidates) == 1:
        return 0
    least = [float("inf")] * len(candidates)
    for _ in range(ROUNDS):
        for index, run in enumerate(candidates):
            _between.add_(1.0)
            begin = perf_counter()
            run()
            least[index] = min(least[index], perf_counter() - begin)
    return min(range(len(candidates)), key=least.__getitem__)
