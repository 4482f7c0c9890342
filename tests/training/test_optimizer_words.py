"""Optimizers, groups and rates against the updates of the papers, written plainly in float64."""

from __future__ import annotations

import math

import pytest
import torch
from support.in_steps import steps
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from dcil_dsl.training.optim import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_rate,
)
from dcil_dsl.words.optimizers import SGD, Adam, AdamW, Lamb, Muon, RMSprop
from dcil_dsl.words.rates import (
    Early,
    ExponentialRate,
    LinearRate,
    OneCycle,
    Plateau,
    Polynomial,
)
from dcil_dsl.words.weight_groups import Frozen, LayerGroup, NoDecay

SHAPES = {"conv.weight": (6, 4, 3, 3), "conv.bias": (6,), "head.weight": (5, 6)}
GRADIENTS = 4


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
        for name, shape in SHAPES.items()
    }


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in SHAPES.items()
    }


def trained(word, groups=(), rates=(0.1, 0.05, 0.025, 0.0125)):
    """The weights after a few steps of given gradients."""
    own = parameters()
    optimizer = make_optimizer(word, own.items(), groups)
    for step, rate in enumerate(rates):
        set_rate(optimizer, rate)
        for name, gradient in gradients(step).items():
            own[name].grad = gradient
        optimizer.step()
    return {name: weight.detach() for name, weight in own.items()}


def plainly(update, rates=(0.1, 0.05, 0.025, 0.0125)):
    """The same by `update(name, w, g, state, t, rate) -> w`, t counted from 1."""
    own = {name: weight.detach().clone() for name, weight in parameters().items()}
    state = {name: {} for name in own}
    for step, rate in enumerate(rates):
        for name, g in gradients(step).items():
            own[name] = update(name, own[name], g, state[name], step + 1, rate)
    return own


def assert_same(one, other, **tolerance):
    for name in SHAPES:
        torch.testing.assert_close(
            one[name], other[name], **({"rtol": 1e-10, "atol": 1e-12} | tolerance)
        )


def moments(g, state, t, betas):
    """Adam's two moments with their corrections."""
    state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    return state["m"] / (1 - betas[0] ** t), state["v"] / (1 - betas[1] ** t)


def test_adam_adds_its_decay_to_the_gradient():
    def update(name, w, g, state, t, rate):
        m, v = moments(g + 0.1 * w, state, t, (0.8, 0.95))
        return w - rate * m / (v.sqrt() + 1e-6)

    word = Adam(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    assert_same(trained(word), plainly(update))


def test_adamw_subtracts_its_decay_from_the_weight():
    def update(name, w, g, state, t, rate):
        m, v = moments(g, state, t, (0.8, 0.95))
        return w - rate * 0.1 * w - rate * m / (v.sqrt() + 1e-6)

    word = AdamW(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    assert_same(trained(word), plainly(update))


def test_rmsprop_divides_by_the_spread_of_the_gradients():
    def update(name, w, g, state, t, rate):
        g = g + 0.01 * w
        state["v"] = 0.9 * state.get("v", 0) + 0.1 * g**2
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        spread = (state["v"] - state["m"] ** 2).sqrt() + 1e-8
        state["b"] = 0.5 * state.get("b", 0) + g / spread
        return w - rate * state["b"]

    word = RMSprop(lr=0.1, alpha=0.9, momentum=0.5, centered=True, weight_decay=0.01)
    assert_same(trained(word), plainly(update))


def test_lamb_scales_adams_step_to_the_norm_of_each_weight():
    def update(name, w, g, state, t, rate):
        m, v = moments(g, state, t, (0.9, 0.999))
        r = m / (v.sqrt() + 1e-6) + 0.02 * w
        return w - rate * w.norm() / r.norm() * r

    assert_same(trained(Lamb(lr=0.1, weight_decay=0.02)), plainly(update))


def orthogonal(m):
    """Five iterations of Newton and Schulz, of Jordan's post, on the rows of a matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m / m.norm()
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def test_muon_makes_the_momentum_of_matrices_orthogonal_and_leaves_vectors_to_adamw():
    def update(name, w, g, state, t, rate):
        if w.dim() == 1:
            m, v = moments(g, state, t, (0.9, 0.95))
            return w - rate * 0.1 * w - rate * m / (v.sqrt() + 1e-7)
        state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
        rows = state["m"].flatten(1)
        moved = orthogonal(rows if len(rows) <= len(rows.T) else rows.T)
        moved = (moved if len(rows) <= len(rows.T) else moved.T).view(w.shape)
        return w - rate * 0.1 * w - rate * 0.2 * math.sqrt(max(rows.shape)) * moved

    word = Muon(lr=0.1, nesterov=False, betas=(0.9, 0.95), weight_decay=0.1)
    # timm iterates in bfloat16.
    assert_same(trained(word), plainly(update), rtol=0.02, atol=0.02)


def test_a_group_has_its_share_of_the_rate_and_its_own_decay_and_later_words_win():
    def update(name, w, g, state, t, rate):
        if name.startswith("head"):
            return w - 10 * rate * (g + 0.5 * w)
        return w - rate * (g + (0.0 if name == "conv.bias" else 0.1) * w)

    groups = (
        LayerGroup(layers="all", lr_scale=2, weight_decay=0.5, parameters=("head.weight",)),
        NoDecay(parameters=("conv.bias",)),
        LayerGroup(layers="head", lr_scale=10, parameters=("head.weight",)),
    )
    assert_same(trained(SGD(lr=0.1, weight_decay=0.1), groups), plainly(update))


def test_no_decay_takes_biases_and_weights_of_one_axis():
    takes = NoDecay().takes
    assert takes("norm.weight", 1) and takes("fc.bias", 1) and takes("odd.bias", 2)
    assert not takes("fc.weight", 2) and takes("scale", 0)


def test_frozen_has_no_settings_but_its_layers():
    assert Frozen.settings() == ("layers",) and NoDecay.settings() == ()


WORDS = [
    SGD(lr=0.1, momentum=0.9),
    Adam(lr=0.1),
    AdamW(lr=0.1),
    RMSprop(lr=0.1, momentum=0.9, centered=True),
    Lamb(lr=0.1),
    Muon(lr=0.1),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.called)
def test_a_state_that_went_out_by_name_continues_to_the_same_bits(word):
    groups = (LayerGroup(layers="head", lr_scale=3, parameters=("head.weight",)),)

    def step(optimizer, own, number):
        for name, gradient in gradients(number).items():
            own[name].grad = gradient
        optimizer.step()

    own = parameters()
    optimizer = make_optimizer(word, own.items(), groups)
    for number in range(3):
        step(optimizer, own, number)
    again = {name: nn.Parameter(weight.detach().clone()) for name, weight in own.items()}
    resumed = make_optimizer(word, again.items(), groups)
    state = {name: value.clone() for name, value in optimizer_state(optimizer).items()}
    entries = {f"{n}/{e}" for n, weight in own.items() for e in word.entries(weight)}
    assert set(state) == entries
    load_optimizer_state(resumed, state, word)
    for number in range(3, 5):
        step(optimizer, own, number)
        step(resumed, again, number)
    for name in SHAPES:
        assert torch.equal(own[name], again[name]), name


# -- rates -------------------------------------------------------------------------------------


def rates(word, lr=0.5, num_steps=101):
    return [word.rate(lr, step, num_steps) for step in range(num_steps)]


def test_a_polynomial_rate_falls_from_lr_to_final_after_the_warm_up():
    found = rates(Polynomial(power=2.0, final=0.1, warmup=steps(20), warmup_from=0.05))
    assert found[0] == 0.05 and found[10] == pytest.approx(0.275)
    u = (60 - 20) / 80
    assert found[60] == pytest.approx(0.1 + 0.4 * (1 - u) ** 2) and found[100] == 0.1


def test_a_linear_rate_is_the_polynomial_of_power_one():
    assert rates(LinearRate(final=0.1)) == pytest.approx(rates(Polynomial(power=1.0, final=0.1)))


def test_an_exponential_rate_falls_by_gamma_after_each_interval():
    found = rates(ExponentialRate(gamma=0.5, every=steps(10), warmup=steps(5)))
    assert [found[step] for step in (5, 14, 15, 25)] == [0.5, 0.5, 0.25, 0.125]


def test_one_cycle_is_torchs_curve():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = OneCycleLR(
        optimizer, max_lr=0.5, total_steps=100, pct_start=0.5, div_factor=25, final_div_factor=1e300
    )
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(99):
        optimizer.step()
        torchs.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert rates(OneCycle(peak=steps(49)), num_steps=100) == pytest.approx(found, abs=1e-12)
    exact = rates(OneCycle(peak=steps(30), initial=0.1, final=0.2))
    assert (exact[0], exact[30], exact[100]) == pytest.approx((0.1, 0.5, 0.2))
    assert exact[15] == pytest.approx(0.3)


def test_plateau_drops_where_torchs_does():
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.4, 0.4, 0.4, 0.2, 0.1, 0.1, 0.0, 0.5]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1, threshold=0)
    word = Plateau(factor=0.5, patience=steps(20))
    for number, value in enumerate(values):
        torchs.step(value)
        seen = [(10 * (i + 1), v) for i, v in enumerate(values[: number + 1])]
        assert word.share_after(seen) == optimizer.param_groups[0]["lr"], number


def test_plateau_never_falls_below_its_least_share():
    word = Plateau(factor=0.1, patience=steps(1), least=0.05)
    assert word.share_after([(i, 0.0) for i in range(1, 9)]) == 0.05


def test_a_run_ends_early_once_the_best_is_as_old_as_the_patience():
    word = Early(patience=steps(20))
    assert not word.ends([]) and not word.ends([(10, 0.5), (20, 0.4)])
    assert word.ends([(10, 0.5), (20, 0.4), (30, 0.5)])
    assert not word.ends([(10, 0.5), (20, 0.4), (30, 0.6)])
