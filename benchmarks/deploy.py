"""What gets faster on a CPU: networks x sparsities x engines x batch sizes x threads.

In:   nothing; random weights with scattered zeros, which is all that the time depends on.
Out:  a JSON file of every time, the table in Markdown on the output, a figure where asked for.
Not:  no accuracy. Times hold on a quiet machine alone; every row has its load.

    python benchmarks/deploy.py                          # all rows, until they are done
    python benchmarks/deploy.py --minutes 25 --figure docs/figures/deploy.svg
    python benchmarks/deploy.py --table                  # the table of the rows that are there

A row is a network, a batch size and a number of threads. All engines take turns in it, dcil with
each sparsity. A row that is in the file is not measured again, so a run that was stopped resumes.

Every convolution but the first and the depthwise ones, and every Linear, loses its smallest weights
to the same sparsity. Norms are folded for all engines. The zeros make no difference to a dense
engine, so each dense engine runs one network, that of DENSE_AT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploy_table import draw, table  # noqa: E402

from dcil_dsl.extras.bench.engines import ENGINES  # noqa: E402
from dcil_dsl.extras.bench.measure import (  # noqa: E402
    Contestant,
    Times,
    describe_cpu,
    measure_row,
    processes_of,
)
from dcil_dsl.extras.cpu.export import build_program, write_program  # noqa: E402
from dcil_dsl.extras.cpu.program import ProgramLayer  # noqa: E402
from dcil_dsl.extras.cpu.storage import compress  # noqa: E402
from dcil_dsl.model.inputs import Inputs as CallInputs  # noqa: E402

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Row = tuple[str, int, int]  # network, batch size, threads
DENSE_AT = 0.9  # of the sparsities, the nearest; the others are those of dcil alone
SAME = ("torch-compiled", "torch-export", "executorch")  # left out: slow to start, or as others
ENGINES_OF_TABLE = [name for name in ENGINES if name not in SAME]


def linear_stack() -> tuple[nn.Module, Inputs]:
    """Four square layers with ReLU, 4096 wide."""
    layers = [part for _ in range(4) for part in (nn.Linear(4096, 4096), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), (torch.randn(1, 4096),)


def tiny() -> tuple[nn.Module, Inputs]:
    """A network of milliseconds, to try this program."""
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * 12 * 12, 10)), (torch.randn(1, 3, 16, 16),)


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
    "tiny": tiny,
    "linear4096x4": linear_stack,
    "resnet50": lambda: vision("resnet50"),
    "resnet18": lambda: vision("resnet18"),
    "minilm": sentence_encoder,
    "vit_b_16": lambda: vision("vit_b_16"),
    "mobilenet_v2": lambda: vision("mobilenet_v2"),
}


@torch.no_grad()
def prune(weight: Tensor, share: float) -> Tensor:
    """A weight without its smallest numbers; the others grow, so that activations keep their size.

    A weight that is all zero, such as the last one of torchvision's ViT, becomes random first.
    """
    if weight.abs().max() == 0:
        weight = torch.randn(weight.shape) * 0.02
    pruned = weight.clone()
    order = weight.abs().flatten().argsort()
    pruned.view(-1)[order[: round(share * weight.numel())]] = 0
    return pruned * (weight.norm() / pruned.norm().clamp_min(1e-9))


@torch.no_grad()
def settle(model: nn.Module, inputs: Inputs) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms and isinstance(inputs, tuple):
        for norm in norms:
            norm.momentum = None
        model.train()
        model(torch.randn(4, *inputs[0].shape[1:]))
    model.eval()


def contestants(network: str, options: argparse.Namespace, folder: Path) -> list[Contestant]:
    """Export the network with each sparsity: dcil runs all of them, dense engines one."""
    dense_at = min(options.sparsities, key=lambda share: abs(share - DENSE_AT))
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]()
    settle(model, inputs)
    program, tensors = build_program(model, CallInputs.of(inputs))
    layers = [op for op in program.operations if isinstance(op, ProgramLayer) and op.groups == 1]
    first = next((op.weight for op in layers if op.op == "conv2d"), None)
    weights = {op.weight for op in layers} - {first}
    found: list[Contestant] = []
    for share in options.sparsities:
        exported, work = folder / f"{share}", folder / f"{share}-work"
        stored = {
            name: compress(prune(tensor, share) if name in weights else tensor)
            for name, tensor in tensors.items()
        }
        write_program(program, stored, exported)
        work.mkdir()
        for engine in options.engines:
            if engine.startswith("dcil"):
                label = f"{engine}@{share:g}"
            elif share == dense_at:
                label = engine
            else:
                continue
            found.append(Contestant(label, engine, str(exported), str(work)))
    return found


def rows_of(network: str, options: argparse.Namespace) -> list[Row]:
    return [(network, batch, count) for batch in options.batches for count in options.threads]


def key_of(entry: dict[str, Any]) -> Row:
    return (entry["network"], entry["batch"], entry["threads"])


def measure(options: argparse.Namespace, found: list[dict[str, Any]]) -> Iterator[str]:
    """Measure the rows that are missing, and store each; yields what to say about it."""
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    done = {key_of(entry) for entry in found}
    rows = [row for name in options.networks for row in rows_of(name, options)]
    left = [row for row in rows if row not in done]
    for network in options.networks:
        own = [row for row in left if row[0] == network]
        if not own or (end is not None and time.monotonic() > end):
            continue
        with tempfile.TemporaryDirectory(prefix="dcil-deploy-") as name:
            entries = contestants(network, options, Path(name))
            with processes_of(entries, max(options.threads)) as started:
                for row in own:
                    seconds = None if end is None else (end - time.monotonic()) / len(left)
                    if seconds is not None and seconds <= 0:
                        break
                    begin, load = time.monotonic(), os.getloadavg()[0]
                    # About half of a row's time goes into preparing its engines.
                    limit = None if seconds is None else seconds / 2
                    times = measure_row(started, row[1], row[2], options.rounds, limit)
                    left.remove(row)
                    found.append(entry_of(row, times, load))
                    store(options.out, found)
                    took = time.monotonic() - begin
                    yield f"{row[0]}, batch {row[1]}, threads {row[2]}: {took:.0f} s"
    for row in left:
        yield f"{row[0]}, batch {row[1]}, threads {row[2]}: not measured, the time was over"


def entry_of(row: Row, times: list[Times], load: float) -> dict[str, Any]:
    """A row of the file; `@0.9` in a label is the sparsity of the network."""
    network, batch, threads = row
    return {
        "network": network,
        "batch": batch,
        "threads": threads,
        "load": load,
        "times": [
            {
                "engine": one.engine.partition("@")[0],
                "sparsity": float(one.engine.partition("@")[2] or "nan"),
                "seconds": list(one.seconds),
                **({"median": one.median, "least": min(one.seconds)} if one.seconds else {}),
                **({"problem": one.problem} if one.problem else {}),
            }
            for one in times
        ],
    }


def store(file: Path, found: list[dict[str, Any]]) -> None:
    """After each row, so that a run that is stopped leaves what it has."""
    for entry in found:
        for one in entry["times"]:
            if one["sparsity"] != one["sparsity"]:
                one["sparsity"] = None  # a dense engine
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({"machine": describe_cpu(), "rows": found}, indent=1) + "\n")
    draft.replace(file)


def stored(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the file. Rows of another machine are not continued."""
    if not options.out.exists():
        return []
    data = json.loads(options.out.read_text())
    cpu = describe_cpu()
    other = [key for key in ("cpu", "processors", "torch") if data["machine"].get(key) != cpu[key]]
    if other and not options.table:
        sys.exit(f"{options.out} is of another {other[0]}: name another file with --out")
    rows: list[dict[str, Any]] = data["rows"]
    return rows


def main(arguments: list[str] | None = None) -> None:
    usual = [name for name in NETWORKS if name != "tiny"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=usual)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES_OF_TABLE)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="most samples of an engine in a row")
    parser.add_argument("--minutes", type=float, help="that all rows together may take")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "deploy.json")
    parser.add_argument("--figure", type=Path, help="draw the rows into this .svg")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    options = parser.parse_args(arguments)
    found = stored(options)
    if not options.table:
        for line in measure(options, found):
            print(line, file=sys.stderr, flush=True)
    print(table(found))
    if options.figure is not None:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
