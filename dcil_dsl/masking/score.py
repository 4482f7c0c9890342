"""How much a weight matters, by the recipe's word for it.

In:   a weight and the name of a score.
Out:  one number per weight, at least zero; the larger, the longer it stays.
Not:  no masks (select.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def score_weights(w: Tensor, score: str) -> Tensor:
    """|w| ("magnitude") or w^2 ("l2"), in the weight's shape and on its device.

    Both give the same order of single weights; they differ once sums over filters compare.
    """
    match score:
        case "magnitude":
            return w.detach().abs()
        case "l2":
            return w.detach().square()
    raise ValueError(f"no score is called {score!r}")
