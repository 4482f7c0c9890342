"""The attention kernel against scaled_dot_product_attention in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dcil_dsl.extras.cpu.attention import AttentionCall
from dcil_dsl.extras.cpu.build import load_library
from dcil_dsl.extras.cpu.steps import Place, TorchCall

INSTRUCTIONS = ("native", "avx2", "portable")


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(query, key, value, *rest, instructions="native", threads=1, **kwargs):
    """What the step computes, and whether the kernel computed it."""
    torch_ran = []

    def by_torch(*given, **named):
        torch_ran.append(True)
        return functional.scaled_dot_product_attention(*given, **named)

    places = [Place(index) for index in range(3)]
    call = TorchCall(by_torch, [*places, *rest], kwargs, [3], "attention")
    values = [query, key, value, None]
    AttentionCall(call, load_library(instructions), threads).run(values)
    return values[3], not torch_ran


def assert_exact(query, key, value, *rest, **given):
    how = {name: given.pop(name) for name in ("instructions", "threads") if name in given}
    found, is_kernel = attention(query, key, value, *rest, **how, **given)
    assert is_kernel
    wide = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in rest]
    narrow = functional.scaled_dot_product_attention(query, key, value, *rest, **given)
    exact = functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), *wide, **given
    )
    of_torch = (narrow - exact).abs().max()
    assert (found - exact).abs().max() <= 2 * of_torch + 1e-6


MASKS = {
    "none": lambda n, h, q, k: None,
    "bool for each query": lambda n, h, q, k: normal(n, 1, q, k) > -0.5,
    "bool for each key": lambda n, h, q, k: normal(n, 1, 1, k) > -0.5,
    "added": lambda n, h, q, k: normal(q, k),
    "added for each head": lambda n, h, q, k: normal(1, h, q, k),
}


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_as_exact_as_torch(mask, instructions):
    query, key, value = normal(2, 3, 37, 24), normal(2, 3, 50, 24, seed=2), normal(2, 3, 50, 20)
    given = MASKS[mask](2, 3, 37, 50)
    assert_exact(query, key, value, given, instructions=instructions)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    inner=st.integers(16, 40),
    outer=st.integers(16, 40),
    threads=st.integers(1, 3),
    mask=st.sampled_from(sorted(MASKS)),
    scale=st.none() | st.floats(0.01, 2),
)
def test_attention_of_random_shapes(n, h, queries, keys, inner, outer, threads, mask, scale):
    query, key = normal(n, queries, h, inner).transpose(1, 2), normal(n, h, keys, inner, seed=2)
    value = normal(n, keys, h, outer, seed=3).transpose(1, 2)
    given = MASKS[mask](n, h, queries, keys)
    assert_exact(query, key, value, given, threads=threads, scale=scale)


def test_a_causal_mask_hides_what_follows():
    query, key, value = (normal(1, 2, 40, 16, seed=seed) for seed in (1, 2, 3))
    assert_exact(query, key, value, None, 0.0, True)


def test_a_query_that_may_see_no_key_gives_zeros_as_in_torch():
    query, key, value = (normal(1, 1, 20, 16, seed=seed) for seed in (1, 2, 3))
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[3] = False
    found, is_kernel = attention(query, key, value, mask)
    assert is_kernel and (found[0, 0, 3] == 0).all() and (found[0, 0, 4] != 0).all()


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_what_they_reach_in_torch(where, number):
    given = {name: normal(1, 2, 21, 16, seed=seed) for seed, name in enumerate(("query", "key"))}
    given["value"] = normal(1, 2, 21, 16, seed=7)
    given[where][0, 1, 5, 3] = number
    found, is_kernel = attention(*given.values())
    wanted = functional.scaled_dot_product_attention(**given)
    assert is_kernel and torch.equal(found.isfinite(), wanted.isfinite())


def test_large_scores_do_not_overflow():
    query, key, value = (normal(1, 1, 30, 16, seed=seed) for seed in (1, 2, 3))
    assert_exact(query * 100, key * 100, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: ([q.double(), k.double(), v.double()], {}),
        lambda q, k, v: ([q[0], k[0], v[0]], {}),
        lambda q, k, v: ([q, k[:, :1], v[:, :1]], {"enable_gqa": True}),
        lambda q, k, v: ([q[..., :3], k[..., :3], v[..., :3]], {}),
    ],
    ids=["float64", "three dimensions", "fewer heads of keys", "short heads"],
)
def test_what_the_kernel_does_not_know_runs_through_torch(change):
    given, kwargs = change(*(normal(1, 4, 9, 16, seed=seed) for seed in (1, 2, 3)))
    found, is_kernel = attention(*given, **kwargs)
    assert not is_kernel
    assert torch.equal(found, functional.scaled_dot_product_attention(*given, **kwargs))
