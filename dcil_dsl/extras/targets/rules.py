"""The rules of each target: does a layer's share of zeros pay there, why, and by how much.

In:   one layer of a plan as LayerFigures.
Out:  Gain: a verdict, the rule that decides it, an estimate.
Not:  nothing is measured here. The figures come from the measurements and sources that
      README.md lists, and an estimate outside of what they cover is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# Time of dense ONNX Runtime over that of dcil's kernels, batch 1, one thread, float32, whole
# networks: resnet50 for convolutions, four Linear of 4096 x 4096. AVX-512 Xeon, 2026-11-30.
CONVOLUTIONS_ON_CPU = ((0.80, 1.5), (0.90, 2.1), (0.95, 2.8))
LINEAR_ON_CPU = ((0.80, 2.4), (0.90, 4.9), (0.95, 9.5))
# int8 with and without sparse weights decompression, four Linear of 4096 x 4096, batch 1, AMX.
LINEAR_ON_OPENVINO = ((0.80, 1.7), (0.90, 1.6))
CODE_BITS = 7  # of an int8 weight that is not zero, as an entropy coder stores it
FEW_ROWS = 16  # multiply-accumulates for a weight: below, a layer waits for its weights

Pays = Literal["yes", "size", "perhaps", "no"]


@dataclass(frozen=True)
class LayerFigures:
    """What the rules look at.

    sparsity   the share of zeros at the end of the run
    rows       multiply-accumulates for each weight and example; None where they are not counted
    tensor_cores  why sparse tensor cores do not run its pattern, "" where they do; None: no pattern
    """

    parameter: str
    type: str
    num_outputs: int
    num_inputs: int
    groups: int
    sparsity: float
    rows: float | None
    tensor_cores: str | None = None

    @property
    def is_convolution(self) -> bool:
        return self.type in ("Conv1d", "Conv2d", "Conv3d")

    @property
    def is_depthwise(self) -> bool:
        return self.is_convolution and self.groups > 1 and self.num_inputs == 1

    @property
    def waits_for_weights(self) -> bool:
        """Whether reading the weights costs more than multiplying them: bound by memory."""
        return self.rows is not None and self.rows <= FEW_ROWS


@dataclass(frozen=True)
class Gain:
    """One layer on one target.

    pays      "yes": faster; "size": smaller, not faster; "perhaps": it depends on what no
              measurement here covers; "no"
    estimate  dense over sparse, of time for "yes", of the weights' bytes for "size"; None: unknown
    """

    pays: Pays
    rule: str
    estimate: float | None = None


def on_dense(layer: LayerFigures) -> Gain:
    return Gain("no", "dense kernels multiply by zeros as by any other number", 1.0)


def on_cpu(layer: LayerFigures) -> Gain:
    if layer.is_depthwise:
        return Gain("no", "depthwise convolutions run dense", 1.0)
    if layer.type not in ("Conv2d", "Linear"):
        return Gain("no", f"there is no kernel for {layer.type}", 1.0)
    measured = LINEAR_ON_CPU if layer.type == "Linear" else CONVOLUTIONS_ON_CPU
    return _as_measured(layer, measured, f"a kernel for {layer.type} skips zeros")


def on_openvino_int8(layer: LayerFigures) -> Gain:
    if layer.type != "Linear":
        return Gain("no", "only MatMul decompresses sparse weights", 1.0)
    if layer.num_outputs % 64 or layer.num_inputs % 64:
        sides = f"{layer.num_outputs} x {layer.num_inputs}"
        return Gain("no", f"both sides must be multiples of 64, not {sides}", 1.0)
    if layer.rows is None:
        return Gain("perhaps", "its arithmetic is not known; compute-bound layers gain nothing")
    if not layer.waits_for_weights:
        return Gain(
            "no", f"compute-bound: {layer.rows:.0f} products for each weight; zeros save reading"
        )
    return _as_measured(layer, LINEAR_ON_OPENVINO, "memory-bound MatMul; needs a CPU with AMX")


def on_ethos_u(layer: LayerFigures) -> Gain:
    if not (layer.is_convolution or layer.type == "Linear"):
        return Gain("no", f"no rule is known for {layer.type}")
    smaller = CODE_BITS / (_entropy(layer.sparsity) + (1 - layer.sparsity) * CODE_BITS)
    if smaller < 1.1:
        return Gain("no", "too few zeros for the weight decoder", 1.0)
    if layer.waits_for_weights:
        return Gain("yes", "memory-bound: the decoder reads fewer bytes", smaller)
    return Gain("size", "weights are stored encoded; compute-bound, so not faster", smaller)


def on_coreml(layer: LayerFigures) -> Gain:
    smaller = 16 / (1 + 16 * (1 - layer.sparsity))
    if smaller <= 1.0:
        return Gain("no", "a bit mask costs more than these zeros save", 1.0)
    if layer.sparsity >= 0.75:
        return Gain("perhaps", "75% zeros or more: the Neural Engine may skip; smaller in any case")
    return Gain("size", "stored as a bit mask and values; below 75% nothing is skipped", smaller)


def on_cuda_2_4(layer: LayerFigures) -> Gain:
    if layer.tensor_cores is None:
        return Gain("no", "the zeros do not form a 2:4 pattern", 1.0)
    if layer.tensor_cores:
        return Gain("no", layer.tensor_cores, 1.0)
    if layer.type != "Linear":
        return Gain("no", f"sparse tensor cores run Linear, not {layer.type}", 1.0)
    return Gain("perhaps", "2:4 in a Linear; at most 2 times, only in large products")


TARGETS: dict[str, tuple[str, Callable[[LayerFigures], Gain]]] = {
    "cpu": ("dcil's kernels on a CPU, float32, batch 1", on_cpu),
    "openvino-int8": ("OpenVINO with sparse weights decompression, batch 1", on_openvino_int8),
    "ethos-u": ("Arm Ethos-U, int8", on_ethos_u),
    "coreml": ("Apple Neural Engine, float16", on_coreml),
    "cuda-2:4": ("sparse tensor cores of an Nvidia GPU", on_cuda_2_4),
    "dense": ("any engine with dense kernels", on_dense),
}


def _as_measured(layer: LayerFigures, measured: tuple[tuple[float, float], ...], rule: str) -> Gain:
    """Between the measured points by a line; beyond the last one its value; before the first none.

    A small margin lets the target that a recipe names hold although counts are rounded.
    """
    first, last = measured[0], measured[-1]
    if layer.sparsity < first[0] - 0.005:
        if layer.sparsity < 0.5:
            return Gain("no", f"{rule}, but too few are there")
        return Gain("perhaps", f"{rule}; measured from {first[0]:.0%} zeros on")
    at = min(max(layer.sparsity, first[0]), last[0])
    for (low, slow), (high, fast) in zip(measured, measured[1:]):
        if at <= high:
            return Gain("yes", rule, slow + (fast - slow) * (at - low) / (high - low))
    return Gain("yes", rule, last[1])


def _entropy(share: float) -> float:
    """Bits for each weight that say whether it is zero."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
