"""The sparse tensor cores of a GPU give the dense product and its gradients.

Written against torch's source and not yet run: no GPU was available. What fails here is news.
"""

import pytest
import torch
import torch.nn.functional as F
from support.cuda_waits import count_waits
from support.device_patterns import RECIPE, has_cores
from torch import nn
from torch.sparse import SparseSemiStructuredTensor

from dcil_dsl.compiler import compile_plan
from dcil_dsl.extras.sparse_compute import tensor_cores
from dcil_dsl.extras.sparse_compute.pattern import apply_pattern
from dcil_dsl.extras.sparse_compute.step import why_computed_whole
from dcil_dsl.extras.sparse_compute.tensor_cores import (
    CORES,
    Cores,
    Product,
    cuda_multiply,
    cuda_obstacle,
    why_whole,
)
from dcil_dsl.lang import loads
from dcil_dsl.masking.units import keep_pattern
from dcil_dsl.model import trace_model
from dcil_dsl.model.calls import apply_layer
from dcil_dsl.plan.plan import Cut
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss
from dcil_dsl.training.machine import Options
from dcil_dsl.training.optim import make_optimizer
from dcil_dsl.zoo.networks import SmallViT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor"),
]
# The last two are the least that a plan takes for sizes that sparse tensor cores run.
SHAPES = [(128, 128), (3072, 768), (768, 3072), (64, 192), (48, 32), (16, 16)]


@pytest.fixture
def cores(device):
    if not has_cores(device):
        pytest.skip("this GPU has no sparse tensor cores")
    torch.manual_seed(0)
    return torch.device("cuda", torch.cuda.current_device())


def halved(device, shape):
    """A weight of mean square 1 / inputs, and the mask of its larger halves."""
    w = torch.randn(shape, device=device) / shape[1] ** 0.5
    mask = keep_pattern(w.abs(), Cut(shape=(shape[0] * shape[1] // 4, 4), units=(0,)), 2)
    return w, mask


def close(found, exact, dtype):
    """Rounded once, after sums in float32."""
    assert found.dtype == dtype and found.shape == exact.shape
    far = (found.float() - exact).abs().max()
    assert far <= 2 * torch.finfo(dtype).eps * exact.abs().max(), far


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_check_finds_the_products_right(cores, dtype, shape):
    for has_bias in (True, False):
        assert why_whole(Product(cores, dtype, shape, has_bias)) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("rows", [1, 7, 8, 200, 4096 + 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_product_is_the_dense_one(cores, dtype, shape, rows, has_bias):
    w, mask = halved(cores, shape)
    w = (w * mask).to(dtype)
    x, b = torch.randn(rows, shape[1], device=cores).to(dtype), None
    if has_bias:
        b = torch.randn(shape[0], device=cores).to(dtype)
    with torch.no_grad():
        found = cuda_multiply(x, w, b)
    assert found.is_contiguous()
    close(found, F.linear(x.float(), w.float(), None if b is None else b.float()), dtype)


@pytest.mark.parametrize("strange", ["wide", "turned", "late"])
def test_inputs_that_lie_otherwise_in_memory_are_read_rightly(cores, strange):
    w, mask = halved(cores, (128, 256))
    w = (w * mask).bfloat16()
    x = torch.randn(64, 256, device=cores).bfloat16()
    if strange == "wide":
        other = torch.cat([x, -x], 1)[:, :256]
    elif strange == "turned":
        other = x.t().contiguous().t()
    else:
        other = torch.empty(x.numel() + 1, dtype=x.dtype, device=cores)[1:].view_as(x).copy_(x)
    with torch.no_grad():
        found = cuda_multiply(other, w, None)
    close(found, F.linear(x.float(), w.float()), torch.bfloat16)


def test_cutlass_gives_the_dense_product_where_it_is_there(cores, monkeypatch):
    if torch.cuda.get_device_capability(cores)[0] != 8:
        pytest.skip("torch's CUTLASS kernels are for compute capability 8.x")
    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", True)
    w, mask = halved(cores, (128, 256))
    w, b = (w * mask).half(), torch.randn(128, device=cores).half()
    for rows in (3, 64):
        x = torch.randn(rows, 256, device=cores).half()
        with torch.no_grad():
            found = cuda_multiply(x, w, b)
        close(found, F.linear(x.float(), w.float(), b.float()), torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 128), (5, 9, 128), (128,)])
def test_under_autocast_a_layer_has_the_outputs_and_gradients_of_the_whole_one(cores, dtype, shape):
    linear = nn.Linear(128, 64).to(cores)
    _, mask = halved(cores, (64, 128))
    results = []
    for apply in (apply_layer, apply_pattern):
        x = torch.randn(shape, device=cores, generator=torch.Generator(cores).manual_seed(1))
        x.requires_grad_()
        view = torch.where(mask, linear.weight, 0.0)
        view.retain_grad()
        linear.zero_grad()
        given = (mask,) if apply is apply_pattern else ()
        with torch.autocast("cuda", dtype):
            y = apply(linear, {"weight": view, "bias": linear.bias}, *given, x)
        assert y.dtype == dtype and y.is_contiguous()
        y.float().square().mean().backward()
        results.append((y.detach(), x.grad, view.grad, linear.bias.grad))
    assert CORES.known[Product(cores, dtype, (64, 128), True)] == ""
    for found, exact in zip(results[1], results[0], strict=True):
        assert found.dtype == exact.dtype
        eps = torch.finfo(dtype).eps
        assert (found.float() - exact.float()).norm() <= 2 * eps * exact.float().norm()
    assert results[1][2][~mask].abs().min() >= 0 and results[1][2][~mask].abs().max() > 0


def test_a_step_on_cores_makes_the_host_wait_for_nothing_even_where_masks_move(cores, monkeypatch):
    shapes = []

    def multiply(x, w, b):
        shapes.append(tuple(w.shape))
        return cuda_multiply(x, w, b)

    monkeypatch.setattr(tensor_cores, "CORES", Cores(cuda_obstacle, multiply))
    recipe = loads(RECIPE.format(sparse="compute = kept").replace("lr=0.01", "lr=0.001"))
    traced = trace_model(SmallViT(), (torch.zeros(1, 3, 16, 16),))
    plan = resolve_recipe(recipe, traced, steps_per_epoch=10)
    dual = compile_plan(plan, traced).to(cores).train()
    found = why_computed_whole(dual, Options(device="cuda", precision="bf16"))
    assert len(found) == 6 and set(found.values()) == {""}
    shapes.clear()
    dual.refresh(0)
    optimizer = make_optimizer(plan.train.optimizer, dual.trainable())
    x = torch.randn(8, 3, 16, 16, device=cores)
    y = torch.randint(0, 10, (8,), device=cores)

    def step(number):
        dual.begin_step(number)
        with torch.autocast("cuda", torch.bfloat16):
            outputs = dual(x)
        loss = total_loss(plan, outputs, y, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    assert count_waits(lambda: step(5)) == 0
    assert count_waits(lambda: step(6)) == 0
    assert shapes == 4 * 3 * [(256, 64), (64, 256)]
    assert set(tensor_cores.CORES.known.values()) == {""}
