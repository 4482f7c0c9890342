"""What gets faster on a CPU: networks x sparsities x engines x batch sizes x threads.

In:   nothing; random weights with scattered zeros, which is all that the time depends on.
Out:  a JSON file of every time, and the table in Markdown on the output.
Not:  no accuracy. Times hold on a quiet machine alone; the file has its load.

Every convolution but the first and the depthwise ones, and every Linear, loses its smallest weights
to the same sparsity. Norms are folded for all engines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dcil_dsl.extras.bench.engines import ENGINES  # noqa: E402
from dcil_dsl.extras.bench.measure import BenchReport, bench_folder, describe_cpu  # noqa: E402
from dcil_dsl.extras.cpu.export import write  # noqa: E402

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def linear_stack() -> tuple[nn.Module, Inputs]:
    """Four square layers with ReLU, 4096 wide."""
    layers = [part for _ in range(4) for part in (nn.Linear(4096, 4096), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), (torch.randn(1, 4096),)


def vision(name: str) -> tuple[nn.Module, Inputs]:
    """A network of torchvision on images of 224 pixels."""
    import torchvision

    return getattr(torchvision.models, name)(), (torch.randn(1, 3, 224, 224),)


def sentence_encoder() -> tuple[nn.Module, Inputs]:
    """The shape of MiniLM with 6 layers, on 128 tokens."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=1000,
    )
    ids = torch.randint(0, 1000, (1, 128))
    return BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


NETWORKS = {
    "linear4096x4": linear_stack,
    "resnet18": lambda: vision("resnet18"),
    "resnet50": lambda: vision("resnet50"),
    "mobilenet_v2": lambda: vision("mobilenet_v2"),
    "vit_b_16": lambda: vision("vit_b_16"),
    "minilm": sentence_encoder,
}


@torch.no_grad()
def prune(model: nn.Module, share: float) -> None:
    """Set the smallest weights of each layer to zero; settle the norms on noise."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in model.modules():
        if module in convolutions[:1] or getattr(module, "groups", 1) > 1:
            continue
        for name in ("weight", "in_proj_weight"):
            weight = getattr(module, name, None)
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)) and isinstance(
                weight, Tensor
            ):
                if weight.abs().max() == 0:  # such as the last layer of torchvision's ViT
                    nn.init.normal_(weight, std=0.02)
                order = weight.abs().flatten().argsort()
                weight.view(-1)[order[: round(share * weight.numel())]] = 0


@torch.no_grad()
def settle(model: nn.Module, inputs: Inputs) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms and isinstance(inputs, tuple):
        for norm in norms:
            norm.momentum = None
        model.train()
        model(torch.randn(4, *inputs[0].shape[1:]))
    model.eval()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name in options.networks:
        for share in options.sparsities:
            torch.manual_seed(0)
            model, inputs = NETWORKS[name]()
            prune(model, share)
            settle(model, inputs)
            with tempfile.TemporaryDirectory() as folder:
                write(model, inputs, folder)
                report = bench_folder(
                    folder, options.engines, options.batches, options.threads, options.rounds
                )
            print(f"{name} {share}", file=sys.stderr, flush=True)
            entries = json.loads(report.as_json())["times"]
            found += [{"network": name, "sparsity": share, **entry} for entry in entries]
            store(options.out, found, report)
    return found


def store(file: Path, found: list[dict[str, Any]], report: BenchReport) -> None:
    """After each network, so that a run that is stopped leaves what it has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": {**report.machine, **describe_cpu()}, "times": found}
    file.write_text(json.dumps(data, indent=1) + "\n")


def table(found: list[dict[str, Any]], base: str) -> str:
    """Median milliseconds of each engine, and the speed relative to `base`."""
    lines = [
        f"| network | zeros | batch | threads | engine | ms | speed over {base} |",
        "|---|---|---|---|---|---|---|",
    ]
    key = ("network", "sparsity", "batch", "threads")
    medians = {
        tuple(one[k] for k in key): one["median"]
        for one in found
        if one["engine"] == base and one["seconds"]
    }
    for one in found:
        where = tuple(one[k] for k in key)
        cells = [one["network"], f"{100 * one['sparsity']:.0f}%", one["batch"], one["threads"]]
        if one["seconds"]:
            over = f"{medians[where] / one['median']:.2f}" if where in medians else "-"
            cells += [one["engine"], f"{1000 * one['median']:.2f}", over]
        else:
            cells += [one["engine"], one["problem"][:60], "-"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--base", default="onnxruntime", help="the engine that others are held to")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "deploy.json")
    options = parser.parse_args()
    print(table(measure(options), options.base))


if __name__ == "__main__":
    main()
