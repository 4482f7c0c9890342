"""What the stored tensors of a run say: where the zeros lie, and the sizes of weights.

In:   a RunRecord, whose folder has sparse.safetensors and perhaps a checkpoint.
Out:  LayerZeros of each pruned layer; the histogram of kept and pruned weights; notes on what
      could not be read.
Not:  no verdict: exporting/verify.py proves the sparsity.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from dcil_dsl.extras.report.read import RunRecord
from dcil_dsl.plan.plan import PlanLayer

TILE = 16
BINS = 61
MOST_PIXELS = 64  # of a side of a bitmap
MOST_BITMAPS = 120  # of a page, 2 KB each, so that it stays under 3 MB
INK = (37, 99, 235)


@dataclass(frozen=True)
class LayerZeros:
    """One pruned layer as a matrix: a row for each output, a column for each weight of it.

    empty_rows, empty_columns  outputs without a weight, and inputs (of a group) without one
    empty_tiles                the share of 16x16 tiles without a weight
    fits_2_4                   the share of groups of four along a row with at most two weights
    bitmap                     the density of each cell, as a PNG in base64; "" where left out
    """

    parameter: str
    rows: int
    columns: int
    nonzero: int
    empty_rows: int
    inputs: int
    empty_columns: int
    empty_tiles: float
    fits_2_4: float
    bitmap: str = ""


@dataclass
class StoredWeights:
    """edges: of the bins, in multiples of the layer's mean kept size."""

    layers: list[LayerZeros] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_weights(run: RunRecord, most_bitmaps: int = MOST_BITMAPS) -> StoredWeights:
    """Everything that the tensors say; notes where a file or a tensor is missing."""
    found = StoredWeights()
    exported = run.path / "sparse.safetensors"
    layers = [layer for layer in run.plan.layers if layer.group is not None]
    if not layers:
        found.notes.append("No rule prunes a layer.")
        return found
    if not exported.is_file():
        found.notes.append("sparse.safetensors is missing: the run has not finished.")
        return found
    largest = sorted(layers, key=lambda layer: -layer.num_weights)[:most_bitmaps]
    if len(largest) < len(layers):
        found.notes.append(f"Bitmaps are drawn of the largest layers: {most_bitmaps}.")
    drawn = {layer.parameter for layer in largest}
    span = torch.linspace(-4.0, 4.0, BINS + 1)
    kept, pruned = torch.zeros(BINS), torch.zeros(BINS)
    checkpoint = run.path / "checkpoint" / "last.safetensors"
    lost: list[str] = []
    with ExitStack() as files:
        deployed = _open(exported, files, found.notes)
        trained = _open(checkpoint, files, found.notes)
        for layer in layers:
            weight = _tensor(deployed, layer.parameter)
            if weight is None or tuple(weight.shape) != layer.shape or not weight.numel():
                lost.append(layer.parameter)
                continue
            found.layers.append(zeros_of(layer, weight, layer.parameter in drawn))
            own = weight[weight != 0].float()
            scale = own.abs().mean().item() if own.numel() else 0.0
            if not scale or not torch.isfinite(own).all():
                continue
            kept += _counts(own / scale, span)
            for values in _pruned_values(trained, layer.parameter, weight):
                pruned += _counts(values / scale, span)
    if lost:
        found.notes.append(f"Not in sparse.safetensors: {', '.join(lost)}.")
    if not pruned.any():
        found.notes.append("The values of the pruned weights are not stored in this folder.")
    found.edges = [round(edge, 4) for edge in span.tolist()]
    found.kept, found.pruned = kept.long().tolist(), pruned.long().tolist()
    return found


def zeros_of(layer: PlanLayer, weight: Tensor, draws: bool = True) -> LayerZeros:
    """The facts of one layer. The matrix has the layer's output axis as its rows."""
    kept = (weight != 0).movedim(layer.out_axis, 0)
    matrix = kept.flatten(1) if kept.dim() > 1 else kept[:, None]
    rows, columns = matrix.shape
    has_inputs = weight.dim() > 1 and layer.in_axis != layer.out_axis
    other = [axis for axis in range(weight.dim()) if axis != layer.in_axis]
    of_inputs = (weight != 0).sum(other) if has_inputs else torch.ones(1)
    tall, wide = -rows % TILE, -columns % TILE
    tiles = pad(matrix.float(), (0, wide, 0, tall)).unfold(0, TILE, TILE).unfold(1, TILE, TILE)
    fours = pad(matrix.float(), (0, -columns % 4)).reshape(rows, -1, 4).sum(2)
    return LayerZeros(
        parameter=layer.parameter,
        rows=rows,
        columns=columns,
        nonzero=int(kept.sum()),
        empty_rows=int((matrix.sum(1) == 0).sum()),
        inputs=of_inputs.numel(),
        empty_columns=int((of_inputs == 0).sum()),
        empty_tiles=(tiles.sum((2, 3)) == 0).float().mean().item(),
        fits_2_4=(fours <= 2).float().mean().item(),
        bitmap=_bitmap(matrix) if draws else "",
    )


def _bitmap(matrix: Tensor) -> str:
    """The density of the matrix, shrunk to at most MOST_PIXELS a side, as the ink's opacity."""
    size = (min(matrix.shape[0], MOST_PIXELS), min(matrix.shape[1], MOST_PIXELS))
    density = adaptive_avg_pool2d(matrix.float()[None], size)[0]
    alpha = (density * 255).round().to(torch.uint8)
    image = Image.new("RGBA", (size[1], size[0]), (*INK, 0))
    image.putalpha(Image.frombytes("L", (size[1], size[0]), bytes(alpha.flatten().tolist())))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _open(file: Path, files: ExitStack, notes: list[str]) -> Any:
    if not file.is_file():
        return None
    try:
        return files.enter_context(safe_open(str(file), "pt"))
    except (SafetensorError, OSError) as error:
        notes.append(f"{file.name} cannot be read: {error}.")
        return None


def _tensor(file: Any, name: str) -> Tensor | None:
    if file is None or name not in set(file.keys()):
        return None
    tensor: Tensor = file.get_tensor(name)
    return tensor


def _pruned_values(trained: Any, name: str, deployed: Tensor) -> Iterator[Tensor]:
    """The values that a dense path trains under the mask; none where they are all zero."""
    weight = _tensor(trained, f"model/{name}")
    if weight is None or weight.shape != deployed.shape:
        return
    values = weight[deployed == 0].float()
    if values.any() and torch.isfinite(values).all():
        yield values


def _counts(values: Tensor, edges: Tensor) -> Tensor:
    """Counts by bin; what lies outside counts in the outermost bins."""
    inside = values.clamp(edges[0].item(), edges[-1].item())
    return torch.histc(inside, BINS, edges[0].item(), edges[-1].item())
