"""Count weights, zeros and arithmetic of the deployed network, layer by layer.

In:   the Plan and the tensors that are deployed.
Out:  Report: plain data for report.json, and its table as text.
Not:  no speed. Zeros in a dense tensor do not make dense kernels faster, so every count of
      arithmetic that leaves zeros out is called theoretical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import percent, shorten, table

HONESTY = (
    "theoretical: multiplications with a weight that is not zero. Zeros do not make dense kernels "
    "faster."
)


@dataclass(frozen=True)
class LayerReport:
    """One layer that could be pruned.

    macs              multiply-accumulates for one example, None where they were not counted
    macs_theoretical  macs * (weights that are not zero / weights)
    """

    parameter: str
    num_weights: int
    num_nonzero: int
    macs: int | None
    macs_theoretical: int | None


@dataclass(frozen=True)
class Report:
    """`num_parameters` counts every deployed tensor, biases included, but no integer buffers."""

    layers: tuple[LayerReport, ...]
    num_parameters: int
    num_nonzero: int

    @property
    def macs(self) -> int:
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def macs_theoretical(self) -> int:
        return sum(layer.macs_theoretical or 0 for layer in self.layers)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; keys of arithmetic without zeros contain `theoretical`."""
        return {
            "num_parameters": self.num_parameters,
            "num_nonzero": self.num_nonzero,
            "macs": self.macs,
            "macs_theoretical": self.macs_theoretical,
            "note": HONESTY,
            "layers": [asdict(layer) for layer in self.layers],
        }


def make_report(plan: Plan, tensors: Mapping[str, Tensor]) -> Report:
    """Count a deployed state dict. Every layer of the plan must be in it."""
    layers = []
    for layer in plan.layers:
        nonzero = int((tensors[layer.parameter] != 0).sum())
        sparse = None if layer.macs is None else round(layer.macs * nonzero / layer.num_weights)
        layers.append(LayerReport(layer.parameter, layer.num_weights, nonzero, layer.macs, sparse))
    numbers = [t for t in tensors.values() if t.is_floating_point()]
    return Report(
        tuple(layers),
        num_parameters=sum(t.numel() for t in numbers),
        num_nonzero=sum(int((t != 0).sum()) for t in numbers),
    )


def show_report(report: Report) -> str:
    """The table by layer and the totals, at most 100 columns."""
    header = ("parameter", "weights", "not zero", "sparsity", "MACs", "theoretical MACs")
    rows = [
        (
            shorten(layer.parameter, 36),
            f"{layer.num_weights:,}",
            f"{layer.num_nonzero:,}",
            percent(round(1 - layer.num_nonzero / max(1, layer.num_weights), 4)),
            _count(layer.macs),
            _count(layer.macs_theoretical),
        )
        for layer in report.layers
    ]
    lines = table(header, rows, "lrrrrr")
    lines.append("")
    lines.append(f"numbers {report.num_parameters:,}, of them not zero {report.num_nonzero:,}")
    if report.macs:
        lines.append(
            f"multiply-accumulates per example {report.macs:,}, theoretical "
            f"{report.macs_theoretical:,}"
        )
    lines.append(HONESTY)
    return "\n".join(lines) + "\n"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
