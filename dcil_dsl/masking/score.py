"""How much a weight matters, by the recipe's word for it.

In:   weights, gradients, the name of a score; for `random` a key.
Out:  one number a weight; the larger, the longer it stays. Sums over steps, kept in place.
Not:  no masks (select.py), no names, no steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.extend.outside import is_token, load


@torch.no_grad()
def score_weights(w: Tensor, score: str) -> Tensor:
    """|w| ("magnitude") or w^2 ("l2"), in the weight's shape and on its device; or what the word
    of a token (extend/outside.py) makes of it.

    Both give the same order of single weights; they differ once sums over filters compare.
    """
    if is_token(score):
        return _in_shape(load(score).score(w.detach()), w, score)
    match score:
        case "magnitude":
            return w.detach().abs()
        case "l2":
            return w.detach().square()
    raise ValueError(f"no score is called {score!r}")


@torch.no_grad()
def add_gradient_score(
    total: Tensor, w: Tensor, grad: Tensor, score: str, unscale: Tensor, gain: float
) -> None:
    """What one backward pass says of the weights, added to `total` in place.

        total += gain * unscale * c      taylor    c = |w * grad|
                                         movement  c = -w * grad
                                         gradient  c = |grad|

    grad is dL/dv, v what a path sees of w: with v = w * m it is that of a straight-through mask,
    so that a pruned weight is scored too. `unscale` is one over what L was multiplied by for the
    backward pass, a tensor of one number. Where the product is not finite, as after an overflow
    in fp16, nothing is added: the next step would not forget it.

    taylor: Molchanov et al. 2019, arXiv:1906.10771, eq. 7 without the square, as in Michel et al.
    2019, arXiv:1905.10650. movement: Sanh et al. 2020, arXiv:2005.07683, section 4. The word of a
    token says what c is, and is given the gradient of L itself.
    """
    if is_token(score):
        step = _in_shape(load(score).score(w, grad * unscale), w, score)
        total.add_(step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(total.dtype), alpha=gain)
        return
    step = grad if score == "gradient" else w * grad
    if score != "movement":
        step = step.abs()
    step = step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(total.dtype)
    total.addcmul_(step, unscale, value=-gain if score == "movement" else gain)


@torch.no_grad()
def random_scores(
    shape: tuple[int, ...], key: int, device: torch.device, start: int = 0
) -> Tensor:
    """Uniform in [0, 1), float64: a function of the key and of a weight's place in row-major order.

    No generator has a state and no two devices differ: entry i is the mixed bits of key + i * c,
    SplitMix64 of Steele et al. 2014. On integers arithmetic wraps around, as it does there.
    `start` is the place of the first, where these are not all of a weight.
    """
    size = 1
    for length in shape:
        size *= length
    places = torch.arange(start + 1, start + size + 1, device=device)
    bits = places * _signed(0x9E3779B97F4A7C15) + _signed(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    bits = bits ^ _shifted(bits, 31)
    return (_shifted(bits, 11).double() * 2.0**-53).view(shape)


@torch.no_grad()
def lamp_scores(squares: Tensor) -> Tensor:
    """LAMP: each square as a share of itself and all that come before it in its layer; float64.

        score(u) = w_u^2 / sum of w_v^2 over v from u on, when sorted by size upwards

    So each layer's largest has score 1, and comparing these over layers empties none. Of equal
    squares the earlier counts as the larger; zeros score 0. `squares` are w^2, or those of units.
    Lee et al. 2021, arXiv:2010.07611, eq. 1.
    """
    flat = squares.flatten().double()
    order = flat.argsort(descending=True, stable=True)
    highest_first = flat[order]
    shares = highest_first / _running_sums(highest_first)
    shares = torch.where(highest_first == 0, 0.0, shares)
    return torch.empty_like(flat).scatter_(0, order, shares).view(squares.shape)


@torch.no_grad()
def without_sign(scores: Tensor) -> Tensor:
    """Numbers from zero up that are in the order of `scores`, which may be negative; float64.

    The place of a float32 among all of them: its bits read as an integer, turned over where it
    is negative. What is not float32 is compared as float32; NaN is the highest, as in select.py.
    """
    scores = scores.float() + 0.0  # no -0.0
    scores = torch.where(scores.isnan(), scores.abs(), scores)
    bits = scores.view(torch.int32)
    above_zero = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return above_zero.double() + 2.0**31


def _running_sums(highest_first: Tensor) -> Tensor:
    """highest_first.cumsum(0), of numbers from zero up, float64.

    Added as whole numbers, whose sum does not depend on the order: a device adds floats in another
    order at each call, so that ranks would disagree on a mask. Each number is taken as
    high * u + low * u * 2^-size, u small against the first; n of either fit into 63 bits.
    """
    size = 62 - (len(highest_first) - 1).bit_length()
    first = highest_first[:1]
    power = (size - torch.frexp(first).exponent.long()).clamp(-1022, 1023)
    scale = ((power + 1023) << 52).view(torch.float64)  # 2^power
    scaled = highest_first * scale
    high = scaled.floor()
    low = ((scaled - high) * 2.0**size).floor()
    sums = high.long().cumsum(0).double() + low.long().cumsum(0).double() * 2.0**-size
    return torch.where(first.isfinite(), sums / scale, first)


def _in_shape(scores: Tensor, w: Tensor, token: str) -> Tensor:
    if scores.shape == w.shape:
        return scores
    given, wanted = (" x ".join(map(str, shape)) for shape in (scores.shape, w.shape))
    raise InputError(
        f"`{load(token).called}` scores a weight of {wanted} by a tensor of {given or 'one number'}"
    )


def _shifted(bits: Tensor, count: int) -> Tensor:
    """To the right, zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    """64 bits as the int64 that has them."""
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
