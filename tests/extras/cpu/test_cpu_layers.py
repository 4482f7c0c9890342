"""Single layers without their zeros against float64 torch."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cpu_nets import (
    all_sparse,
    assert_as_exact_as_torch,
    magnitude,
    network_of,
    network_of_layers,
    pruned,
)
from torch import nn

from dcil_dsl.extras.cpu.build import load_library
from dcil_dsl.extras.cpu.network import CpuNetwork
from dcil_dsl.extras.cpu.pack import keep
from dcil_dsl.extras.cpu.program import ProgramLayer
from dcil_dsl.extras.cpu.steps import GATHERS, SlicedLinear
from dcil_dsl.extras.cpu.storage import compress

SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
FEW = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


KERNELS = [("c", "native"), ("generated", "native"), ("c", "avx2"), ("c", "portable")]


def check(layer, x, threads=1):
    """Every kind of kernel for one layer."""
    layers = layer if isinstance(layer, nn.Sequential) else [layer]
    exported = network_of_layers(*layers, shape=x.shape)
    slack = magnitude(layer, x)
    for kernels, instructions in KERNELS:
        network = CpuNetwork(exported.program, exported.stored, kernels, threads, instructions)
        assert all_sparse(network)
        assert_as_exact_as_torch(layer, network, (x,), slack)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rows", [1, 3, 4, 16, 50])
def test_a_linear_layer_of_any_sparsity_is_as_exact_as_torch(rows, share):
    check(pruned(nn.Linear(130, 77), share), normal(rows, 130))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gathers", GATHERS)
@pytest.mark.parametrize("instructions", ["native", "avx2", "portable"])
def test_every_way_to_read_the_inputs_of_one_row_is_exact(instructions, gathers, weights):
    library = load_library(instructions)
    weight = pruned(nn.Linear(530, 77), 0.9).weight.detach().to(weights)
    x = normal(1, 530)
    operation = ProgramLayer(op="linear", layer="layer", input="x", output="y", weight="w")
    step = SlicedLinear(
        operation,
        library,
        (0, None, 1),
        (1, 530),
        keep(compress(weight)),
        np.zeros(77, np.float32),
        threads=2,
        gathers=gathers,
    )
    values = [x, None]
    step.run(values)
    torch.testing.assert_close(
        values[1].double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "settings",
    [
        dict(kernel_size=1),
        dict(kernel_size=1, stride=2),
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, stride=2, padding=1),
    ],
    ids=str,
)
def test_a_convolution_of_any_sparsity_is_as_exact_as_torch(settings, share):
    check(pruned(nn.Conv2d(9, 35, **settings), share), normal(2, 9, 13, 11))


@FEW
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    bias=st.booleans(),
    share=st.floats(0, 1),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_linear_layers_of_random_shapes(rows, inner, outer, bias, share, threads, seed):
    layer = pruned(nn.Linear(inner, outer, bias=bias), share, seed)
    check(layer, normal(rows, inner, seed=seed), threads=threads)


@st.composite
def convolutions(draw):
    """A convolution and a batch of images that is large enough for it."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    depthwise = draw(st.booleans()) and groups > 1
    inner = groups if depthwise else groups * draw(st.integers(1, 5))
    outer = groups * draw(st.integers(1, 12))
    settings = dict(
        kernel_size=(draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=(draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    sides = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 20))
        for k, d, p in zip(settings["kernel_size"], settings["dilation"], settings["padding"])
    ]
    shape = (draw(st.integers(1, 5)), inner, *sides)
    return nn.Conv2d(inner, outer, **settings), shape


@FEW
@given(
    case=convolutions(),
    share=st.floats(0, 1),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_convolutions_of_random_shapes(case, share, threads, seed):
    layer, shape = case
    check(pruned(layer, share, seed), normal(*shape, seed=seed), threads=threads)


@FEW
@given(
    window=st.integers(1, 5),
    stride=st.integers(1, 4),
    sides=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    data=st.data(),
)
def test_max_pools_of_random_shapes_are_equal_to_torch(window, stride, sides, data):
    padding = data.draw(st.integers(0, window // 2))
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.MaxPool2d(window, stride, padding))
    net = pruned(net, 0.5)
    x = normal(2, 3, *sides)
    check(net, x - 10)


class Joined(nn.Module):
    """A layer with a residual sum and an activation, in one of several forms."""

    def __init__(self, layer, activation, add):
        super().__init__()
        self.layer, self.activation, self.add = layer, activation, add

    def forward(self, x):
        y = self.layer(x)
        return self.activation(y + x if self.add else y)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.GELU()], ids=str)
@pytest.mark.parametrize("kind", ["conv", "depthwise", "linear 1", "linear 20"])
def test_bias_residual_and_activation_are_part_of_the_layer(kind, activation, add):
    if kind.startswith("linear"):
        layer, shape = nn.Linear(40, 40), (int(kind.split()[1]), 40)
    else:
        layer = nn.Conv2d(12, 12, 3, padding=1, groups=12 if kind == "depthwise" else 1)
        shape = (3, 12, 9, 14)
    model = pruned(Joined(layer, activation, add), 0.8)
    x = 4 * normal(*shape)
    for kernels in ("c", "generated"):
        network = network_of(model, (x,), kernels=kernels)
        assert all_sparse(network)
        assert_as_exact_as_torch(model, network, (x,), magnitude(layer, x))


@pytest.mark.parametrize("kernels", ["c", "generated"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(1, 24), (9, 24), (2, 24, 5, 6)])
def test_what_is_not_finite_passes_through_every_kept_weight(shape, bad, kernels):
    """As in torch; a skipped zero hides its input's NaN, which 0 * NaN would not."""
    is_conv = len(shape) == 4
    layer = pruned(nn.Conv2d(24, 24, 1) if is_conv else nn.Linear(24, 24), 0.7)
    x = normal(*shape)
    x[0, 3] = bad
    with torch.no_grad():
        ours = network_of(layer, (x,), kernels=kernels)(x)
        reads = layer.weight.flatten(1)[:, 3] != 0
        theirs = layer(x)
    assert reads.any() and not reads.all()
    kept = ours[0][reads]
    assert torch.equal(kept.isnan(), theirs[0][reads].isnan())
    assert torch.equal(kept.isinf(), theirs[0][reads].isinf())
    assert not kept.isfinite().any()
    assert ours[0][~reads].isfinite().all()
    assert torch.isfinite(ours[1:]).all()


@pytest.mark.parametrize("layer", [nn.Linear(1, 1), nn.Conv2d(1, 1, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.GELU()], ids=str)
def test_activations_give_what_torch_gives_for_numbers_that_are_not_finite(activation, layer):
    """In float64; the float32 GELU of torch gives NaN or inf for inf, by its place."""
    model = nn.Sequential(layer, activation).eval()
    numbers = torch.tensor([float("nan"), float("inf"), -float("inf"), -1e30, 1e30, -0.0])
    x = numbers[:, None] if isinstance(layer, nn.Linear) else numbers.reshape(6, 1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(0)
        ours = [network_of(model, (x,), kernels=kernels)(x) for kernels in ("c", "generated")]
        theirs = model.double()(x.double()).float()
    model.float()
    for one in ours:
        torch.testing.assert_close(one, theirs, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_gelu_is_as_exact_as_torch_everywhere():
    layer = nn.Linear(1, 1)
    model = nn.Sequential(layer, nn.GELU()).eval()
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(0)
    x = torch.linspace(-12, 12, 100_001)[:, None]
    assert_as_exact_as_torch(model, network_of(model, (x,)), (x,))


@pytest.mark.parametrize("rows", [1, 20])
def test_a_linear_layer_with_more_inputs_than_16_bits_count(rows):
    layer = pruned(nn.Linear(70_000, 3), 0.99)
    check(layer, normal(rows, 70_000))


@pytest.mark.parametrize("model", [nn.Linear(40, 33), nn.Conv2d(40, 33, 3, padding=1)], ids=str)
@pytest.mark.parametrize("kernels", ["c", "generated", "torch"])
@pytest.mark.parametrize("rows", [1, 20])
def test_bfloat16_weights_compute_in_float32(model, rows, kernels):
    model = pruned(model, 0.8)
    x = normal(rows, 40) if isinstance(model, nn.Linear) else normal(rows, 40, 6, 7)
    network = network_of(model, (x,), torch.bfloat16, kernels=kernels)
    with torch.no_grad():
        model.weight.copy_(model.weight.bfloat16().float())
    assert network.stored["weight"].values.dtype == torch.bfloat16
    assert_as_exact_as_torch(model, network, (x,), magnitude(model, x))
