"""Networks with scattered zeros, and how far a float32 result may be from float64.

Not:  no test.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dcil_dsl.extras.cpu.export import build_program
from dcil_dsl.extras.cpu.network import CpuNetwork
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramCall, ProgramInput, ProgramLayer
from dcil_dsl.extras.cpu.storage import compress
from dcil_dsl.model.inputs import Inputs


@torch.no_grad()
def pruned(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Random numbers everywhere, and the given share of each weight zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        draw = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.dim() < 2:
            tensor.copy_(0.2 * draw + (1 if "weight" in name else 0))
        else:
            draw *= (2.0 / tensor[0].numel() / max(1 - share, 1e-2)) ** 0.5
            dropped = torch.randperm(tensor.numel(), generator=generator)
            draw.view(-1)[dropped[: round(share * tensor.numel())]] = 0
            tensor.copy_(draw)
    return model.eval()


def network_of(
    model: nn.Module, inputs: Any, weights: torch.dtype | None = None, **options: Any
) -> CpuNetwork:
    """The exported network, without the files between."""
    program, tensors = build_program(model, Inputs.of(inputs))
    stored = {
        name: compress(tensor, weights if tensor.dim() > 1 else None)
        for name, tensor in tensors.items()
    }
    return CpuNetwork(program, stored, **{"kernels": "c", **options})


def network_of_layers(*layers: nn.Module, shape: tuple[int, ...]) -> CpuNetwork:
    """Linear layers, convolutions and max pools in a row, without a trace of torch.export."""
    stored, operations, value = {}, [], "x"
    for index, layer in enumerate(layers):
        names = dict(input=value, output=f"v{index}")
        value = f"v{index}"
        if isinstance(layer, nn.MaxPool2d):
            pairs = [[size, size] for size in (layer.kernel_size, layer.stride, layer.padding)]
            args = [{"value": names["input"]}, *pairs]
            pool = "aten.max_pool2d.default"
            operations.append(ProgramCall(op="torch", function=pool, args=args, outputs=[value]))
            continue
        stored[f"{index}.weight"] = compress(layer.weight)
        if layer.bias is not None:
            names["bias"] = f"{index}.bias"
            stored[names["bias"]] = compress(layer.bias)
        if isinstance(layer, nn.Conv2d):
            for key in ("stride", "padding", "dilation", "groups"):
                names[key] = getattr(layer, key)
        op = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
        operations.append(ProgramLayer(op=op, layer=str(index), weight=f"{index}.weight", **names))
    given = [ProgramInput(name="x", shape=[None, *shape[1:]], dtype="float32")]
    outputs = {"value": value}
    program = CpuProgram(
        format=1, model="", inputs=given, operations=operations, outputs=outputs, digest=""
    )
    return CpuNetwork(program, stored, "c")


@torch.no_grad()
def run_all(
    model: nn.Module, network: nn.Module, inputs: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(float64 torch, float32 torch, network) for each output."""
    given = Inputs.of(inputs)
    double = copy.deepcopy(model).double()
    wide = given.to(torch.float64)
    outputs = [
        double(*wide.args, **wide.kwargs),
        model(*given.args, **given.kwargs),
        network(*given.args, **given.kwargs),
    ]
    flat = [[t for t in pytree.tree_leaves(o) if isinstance(t, Tensor)] for o in outputs]
    assert len(flat[0]) == len(flat[2])
    return list(zip(*flat, strict=True))


def assert_as_exact_as_torch(
    model: nn.Module, network: nn.Module, inputs: Any, slack: float = 0.0
) -> None:
    """At most twice the error of float32 torch; `slack` where torch happens to be exact."""
    for exact, torchs, ours in run_all(model, network, inputs):
        assert ours.shape == exact.shape and ours.dtype == torchs.dtype
        error, own = (float((t.double() - exact).abs().max()) for t in (torchs, ours))
        assert own <= 2 * error + slack, f"{own:.2e}, torch {error:.2e}"


def all_sparse(network: CpuNetwork) -> bool:
    return all(line.where == "sparse" for line in network.lines())


def magnitude(model: nn.Module, inputs: Tensor) -> float:
    """A few units in the last place of the sums of |weight * input|: what rounding may cost."""
    positive = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
        return float(positive(inputs.abs()).abs().max()) * 2**-22
