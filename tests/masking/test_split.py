"""The views of one weight and the routing of their gradients, by equation."""

import pytest
import torch
from torch.autograd import gradcheck

from dcil_dsl.masking.split import share_gradient, split_weight

BOTH = ("masked", "full")
DCIL = {"views": BOTH, "kept": (1, 0), "pruned": (0, 1)}


def weight_and_mask(dtype=torch.float64):
    w = torch.tensor([[1.0, -2.0, 3.0], [0.5, -0.25, 4.0]], dtype=dtype, requires_grad=True)
    return w, torch.tensor([[True, False, True], [False, False, True]])


def upstream(seed, like):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def test_a_weight_learns_from_exactly_one_path():
    """DCIL: kept entries from the sparse path, pruned ones from the dense."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    m = torch.tensor([True, False])
    sparse, dense = split_weight(w, m, **DCIL)
    (10 * sparse.sum() + 7 * dense.sum()).backward()
    assert w.grad.tolist() == [10.0, 7.0]


def test_the_views_are_the_weight_with_zeros_and_the_weight():
    w, m = weight_and_mask()
    sparse, dense = split_weight(w, m, **DCIL)
    assert sparse.tolist() == [[1, 0, 3], [0, 0, 4]]
    assert torch.equal(dense, w)


def test_a_pruned_infinity_or_nan_is_zero_on_the_masked_path():
    w = torch.tensor([torch.inf, torch.nan, 2.0], requires_grad=True)
    sparse, _ = split_weight(w, torch.tensor([False, False, True]), **DCIL)
    assert sparse.tolist() == [0, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dcil_is_where_mask_sparse_else_dense_bit_for_bit(dtype):
    w, m = weight_and_mask(dtype)
    sparse, dense = split_weight(w, m, **DCIL)
    g_sparse, g_dense = upstream(0, w), upstream(1, w)
    torch.autograd.backward([sparse, dense], [g_sparse, g_dense])
    assert w.grad.dtype == dtype
    assert torch.equal(w.grad, torch.where(m, g_sparse, g_dense))


@pytest.mark.parametrize(
    "kept, pruned",
    [
        ((1, 0), (0, 1)),
        ((1, 0), (0.1, 0.9)),
        ((0.5, 0.5), (0.5, 0.5)),
        ((1, 1), (0, 0)),
        ((0, 0), (1, 2)),
        ((0, 1), (1, 0)),
        ((-1, 0.25), (3, 0)),
    ],
    ids=str,
)
def test_any_shares_add_up_as_the_equation_says(kept, pruned):
    w, m = weight_and_mask()
    views = split_weight(w, m, BOTH, kept, pruned)
    g = [upstream(0, w), upstream(1, w)]
    torch.autograd.backward(views, g)
    expected = m * (kept[0] * g[0] + kept[1] * g[1])
    expected = expected + ~m * (pruned[0] * g[0] + pruned[1] * g[1])
    assert torch.allclose(w.grad, expected, rtol=0, atol=1e-15)


def test_a_part_with_no_share_gets_exact_zeros():
    w, m = weight_and_mask()
    (sparse,) = split_weight(w, m, ("masked",), (1,), (0,))
    sparse.backward(torch.full_like(w, torch.inf))
    assert torch.equal(w.grad[~m], torch.zeros(3, dtype=w.dtype))


def test_no_share_at_all_is_no_gradient():
    w, m = weight_and_mask()
    sparse, dense = split_weight(w, m, BOTH, (0, 0), (0, 0))
    (sparse.sum() + dense.sum()).backward()
    assert w.grad is None


def test_a_path_whose_output_is_not_used_gives_nothing():
    w, m = weight_and_mask()
    _, dense = split_weight(w, m, **DCIL)
    dense.backward(torch.ones_like(w))
    assert torch.equal(w.grad, (~m).double())


def test_straight_through_is_one_masked_path_that_all_weights_learn_from():
    """DPF: kept, pruned by sparse."""
    w, m = weight_and_mask()
    (sparse,) = split_weight(w, m, ("masked",), (1,), (1,))
    g = upstream(0, w)
    sparse.backward(g)
    assert torch.equal(w.grad, g)


def test_the_gradients_of_a_view_used_twice_add_up_before_they_are_routed():
    w, m = weight_and_mask()
    sparse, dense = split_weight(w, m, **DCIL)
    (2 * sparse.sum() + (sparse * 3).sum() + 4 * dense.sum() + dense.sum()).backward()
    assert torch.equal(w.grad, torch.where(m, 5.0, 5.0).double())


def test_three_paths_have_three_columns():
    w, m = weight_and_mask()
    views = split_weight(w, m, ("masked", "full", "full"), (1, 0, 0.5), (0, 1, 2))
    g = [upstream(seed, w) for seed in range(3)]
    torch.autograd.backward(views, g)
    expected = torch.where(m, g[0] + 0.5 * g[2], g[1] + 2 * g[2])
    assert torch.allclose(w.grad, expected, rtol=0, atol=1e-15)


def test_an_all_true_mask_gives_the_weight_and_the_kept_shares():
    w, _ = weight_and_mask()
    sparse, dense = split_weight(w, torch.ones_like(w, dtype=torch.bool), **DCIL)
    assert torch.equal(sparse, dense)
    (5 * sparse.sum() + 3 * dense.sum()).backward()
    assert torch.equal(w.grad, torch.full_like(w, 5))


@pytest.mark.parametrize(
    "views, kept, pruned",
    [(("masked",), (1,), (0,)), (("full",), (1,), (1,)), (BOTH, (1, 1), (0, 1))],
    ids=["hard", "dense", "both"],
)
def test_where_the_routing_is_the_true_gradient_it_passes_gradcheck(views, kept, pruned):
    """d(w * m) / dw is (1, 0), dw / dw is (1, 1)."""
    w, m = weight_and_mask()

    def outputs(w):
        return tuple((view**2).sum() for view in split_weight(w, m, views, kept, pruned))

    assert gradcheck(outputs, (w,))


def test_the_mask_gets_no_gradient_and_keeps_its_values():
    w, m = weight_and_mask()
    before = m.clone()
    sparse, dense = split_weight(w, m, **DCIL)
    (sparse.sum() + dense.sum()).backward()
    assert m.grad is None and torch.equal(m, before)


# -- weights that are not pruned ------------------------------------------------------------------


def test_a_share_scales_the_gradient_and_not_the_values():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = share_gradient(x, 0.25)
    assert torch.equal(y, x)
    (8 * y).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_a_share_of_one_is_the_tensor_itself_and_of_zero_cuts_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert share_gradient(x, 1) is x
    assert not share_gradient(x, 0).requires_grad


def test_what_is_no_tensor_has_no_gradient_to_share():
    assert share_gradient(3, 0.5) == 3
    assert share_gradient(torch.Size([2, 3]), 0) == (2, 3)
