"""What a step costs whose sparse path computes its kept filters, or channels, alone.

    python benchmarks/kept_alone.py --tiny                       # shows that it runs
    python benchmarks/kept_alone.py --networks resnet18,resnet50
    python benchmarks/kept_alone.py --device cuda --precision bf16
    python benchmarks/kept_alone.py --pattern --device cuda --precision bf16

Three steps side by side, in turns: the dense network, two paths as usual, and two paths of which
the sparse one has `compute = kept`. Each layer loses the same share of its units, so that what the
plan counts is a bound. First the losses of the two are compared in float64.

With `--pattern` the network is the linear layers of a vision transformer, the units are 2:4 and
the forward product of the sparse path runs on sparse tensor cores, where the device has them and
the precision is bf16: `patterns` says whether. Losses are compared in that precision as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from environment import describe_machine
from memory import peak_of
from timing import interleave, ratios, spread
from torch import Tensor, nn
from workloads import STEPS_PER_EPOCH, WORKLOADS, build, last_step

from dcil_dsl.compiler import compile_plan
from dcil_dsl.extras.sparse_compute.step import pattern_words, why_computed_whole
from dcil_dsl.lang import loads
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss
from dcil_dsl.training.machine import Options

RECIPE = """
language 1
prune {rule}
mix {{
  path sparse = masked {{ compute = {compute} }}
  path dense  = full
  update kept   by sparse
  update pruned by dense
  private {norms}
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  loss kl(student=dense, teacher=sparse, temperature=2)
  deploy sparse
}}
train {{ epochs = 1ep  optimizer = sgd(lr=0.1)  precision = {precision} }}
"""
SAME = 1e-9
ROUNDED = {"fp32": 1e-4, "bf16": 1e-2}  # losses of one step, products by other kernels


@dataclass(frozen=True)
class Case:
    """One network and its recipe; the images, or tokens, and the labels of a batch.

    few  this many examples of the batch are compared in float64, and then all of it on the
         device as it is timed; None: all of it in float64 alone
    """

    name: str
    unit: str
    sparsity: str
    rule: str
    norms: str
    build: Callable[[], nn.Module]
    inputs: Tensor
    labels: Tensor
    few: int | None = None


class Block(nn.Module):
    """x + the two layers of a transformer between its attentions; (B, tokens, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    """The linear layers of a vision transformer; (B, tokens, width) -> (B, 1000)."""

    def __init__(self, width: int, num_blocks: int):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(num_blocks)))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


# Width, blocks, batch, tokens: ViT-B/16's on a GPU; on a CPU, and tried out.
STACKS = {"cuda": (768, 12, 128, 196), "cpu": (192, 4, 16, 196), "tiny": (64, 2, 2, 16)}


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    torch.backends.cudnn.benchmark = True
    report, status = {"machine": describe_machine(asked.device), "results": []}, 0
    for case in [stack_case(asked)] if asked.pattern else network_cases(asked):
        entry = measure(case, asked)
        report["results"].append(entry)
        status |= not entry["difference"] < SAME
        if entry["rounded"] is not None:
            status |= not entry["rounded"] < ROUNDED[asked.precision]
        show(entry)
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(status)


def network_cases(asked: argparse.Namespace) -> Iterator[Case]:
    for network in asked.networks.split(","):
        for unit in asked.units.split(","):
            for share in asked.sparsities.split(","):
                workload = WORKLOADS[network]
                batch, size = getattr(workload, "gpu" if asked.device == "cuda" else "cpu")
                batch, size = (2, 32) if asked.tiny else (asked.batch or batch, asked.size or size)
                torch.manual_seed(0)
                images = torch.randn(batch, 3, size, size)
                whole = {"filter": "filter(ties=none)"}.get(unit, unit)
                rule = f"Conv2d except first Conv2d to uniform({share}%, granularity={whole})"
                yield Case(
                    network,
                    unit,
                    f"{share}%",
                    rule,
                    "BatchNorm2d",
                    partial(build, workload),
                    images.contiguous(memory_format=torch.channels_last),
                    torch.randint(0, workload.classes, (batch,)),
                )


def stack_case(asked: argparse.Namespace) -> Case:
    width, num_blocks, batch, tokens = STACKS["tiny" if asked.tiny else asked.device]
    batch, tokens = asked.batch or batch, asked.size or tokens

    def build_stack() -> nn.Module:
        torch.manual_seed(0)
        return Stack(width, num_blocks)

    torch.manual_seed(0)
    return Case(
        f"{num_blocks} x 2 layers of {width} and {4 * width}",
        "2:4",
        "50%",
        "Linear except last Linear to 2:4",
        "LayerNorm",
        build_stack,
        torch.randn(batch, tokens, width),
        torch.randint(0, 1000, (batch,)),
        few=2,
    )


def measure(case: Case, asked: argparse.Namespace) -> dict:
    """Seconds a step in turns, their ratios, peaks of memory, and what the plan counts."""
    device, inputs, labels = torch.device(asked.device), case.inputs, case.labels
    duals = {"ours": "all", "kept": "kept"}
    for name, compute in duals.items():
        recipe = loads(
            RECIPE.format(
                rule=case.rule, norms=case.norms, compute=compute, precision=asked.precision
            )
        )
        traced = trace_model(case.build(), (inputs[:1],))
        plan = resolve_recipe(recipe, traced, STEPS_PER_EPOCH)
        duals[name] = compile_plan(plan, traced).train()
        duals[name].begin_step(last_step(plan))
    few = inputs[: case.few].double(), labels[: case.few]
    losses = [loss_of(copy.deepcopy(dual).double(), *few, "fp32").item() for dual in duals.values()]
    modules = {"dense": case.build().train(), **duals}
    given = inputs.to(device), labels.to(device)
    for module in modules.values():
        module.to(device).to(memory_format=torch.channels_last)
    options = Options(device=device, precision=asked.precision)
    patterns = pattern_words(why_computed_whole(duals["kept"], options))
    rounded = None
    if case.few is not None:
        rounded = far([loss_of(dual, *given, asked.precision).item() for dual in duals.values()])
    steps, peaks = {}, {}
    for name, module in modules.items():
        steps[name] = stepper(module, *given, asked.precision)
        steps[name]()
        peaks[name] = peak_of(steps[name], device, [*module.parameters(), *module.buffers()])
    samples = interleave(steps, device, rounds=asked.rounds, times=asked.steps)
    return {
        "network": case.name,
        "unit": case.unit,
        "sparsity": case.sparsity,
        "batch": len(inputs),
        "size": inputs.shape[-1 if inputs.dim() == 4 else 1],
        "precision": asked.precision,
        "difference": far(losses),
        "rounded": rounded,
        "patterns": patterns,
        "counted": training_cost(duals["kept"].plan),
        "seconds": {name: spread(values) for name, values in samples.items()},
        "ratios": ratios(samples),
        "peak_bytes": peaks if device.type == "cpu" else None,  # on a GPU all three are there
    }


def far(losses: list[float]) -> float:
    return abs(losses[0] - losses[1]) / abs(losses[0])


def stepper(module, inputs: Tensor, labels: Tensor, precision: str):
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(module, inputs, labels, precision).backward()
        optimizer.step()

    return step


def loss_of(module, inputs: Tensor, labels: Tensor, precision: str) -> Tensor:
    enabled = precision == "bf16"
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled):
        outputs = module(inputs)
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs.float(), labels)
    return total_loss(module.plan, outputs, labels, last_step(module.plan))


def show(entry: dict) -> None:
    def ratio(pair: str) -> str:
        values = entry["ratios"][pair]
        return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"

    rounded = entry["rounded"]
    print(
        f"{entry['network']}, {entry['sparsity']} by {entry['unit']}, {entry['precision']}, "
        f"{entry['batch']} x {entry['size']}: kept alone {ratio('kept/dense')} dense steps, "
        f"counted {entry['counted']:.2f}, as usual {ratio('ours/dense')}, kept alone to usual "
        f"{ratio('kept/ours')}; losses differ by {entry['difference']:.0e}"
        + ("" if rounded is None else f", in {entry['precision']} by {rounded:.0e}"),
        *entry["patterns"],
        sep="\n  ",
        flush=True,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="resnet18", help=f"some of {', '.join(WORKLOADS)}")
    parser.add_argument("--pattern", action="store_true", help="2:4 of linear layers instead")
    parser.add_argument("--units", default="filter,channel")
    parser.add_argument("--sparsities", default="50,75", help="in per cent")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, help="default: by network and device")
    parser.add_argument("--size", type=int, help="side of the images, or tokens")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each")
    parser.add_argument("--steps", type=int, default=1, help="steps in a sample")
    parser.add_argument("--tiny", "--quick", action="store_true", help="times mean nothing")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    unknown = set(asked.networks.split(",")) - set(WORKLOADS)
    if unknown:
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    if asked.tiny:
        asked.rounds, asked.sparsities = 2, asked.sparsities.split(",")[0]
    return asked


if __name__ == "__main__":
    sys.exit(main())
