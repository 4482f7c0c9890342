"""What a step costs whose sparse path computes its kept filters, or channels, alone.

    python benchmarks/kept_alone.py --tiny                       # shows that it runs
    python benchmarks/kept_alone.py --networks resnet18,resnet50
    python benchmarks/kept_alone.py --device cuda --precision bf16

Three steps side by side, in turns: the dense network, two paths as usual, and two paths of which
the sparse one has `compute = kept`. Each layer loses the same share of its units, so that what the
plan counts is a bound. First the losses of the two are compared in float64.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from environment import describe_machine
from memory import peak_of
from timing import interleave, ratios, spread
from torch import Tensor
from workloads import STEPS_PER_EPOCH, WORKLOADS, build, last_step

from dcil_dsl.compiler import compile_plan
from dcil_dsl.graph.trace import trace_model
from dcil_dsl.lang import loads
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss

RECIPE = """
language 1
prune Conv2d except first Conv2d to uniform({sparsity}, granularity={unit})
mix {{
  path sparse = masked {{ compute = {compute} }}
  path dense  = full
  update kept   by sparse
  update pruned by dense
  private BatchNorm2d
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  loss kl(student=dense, teacher=sparse, temperature=2)
  deploy sparse
}}
train {{ epochs = 1ep  optimizer = sgd(lr=0.1) }}
"""
SAME = 1e-9


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    torch.backends.cudnn.benchmark = True
    report, status = {"machine": describe_machine(asked.device), "results": []}, 0
    for network in asked.networks.split(","):
        for unit in asked.units.split(","):
            for sparsity in asked.sparsities.split(","):
                entry = measure(network, unit, f"{sparsity}%", asked)
                report["results"].append(entry)
                status |= not entry["difference"] < SAME
                show(entry)
                if asked.json:
                    asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return status


def measure(network: str, unit: str, sparsity: str, asked: argparse.Namespace) -> dict:
    """Seconds a step in turns, their ratios, peaks of memory, and what the plan counts."""
    workload, device = WORKLOADS[network], torch.device(asked.device)
    batch, size = getattr(workload, "gpu" if asked.device == "cuda" else "cpu")
    batch, size = (2, 32) if asked.tiny else (asked.batch or batch, asked.size or size)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, workload.classes, (batch,))
    duals = {"ours": "all", "kept": "kept"}
    for name, compute in duals.items():
        recipe = loads(RECIPE.format(sparsity=sparsity, unit=unit, compute=compute))
        traced = trace_model(build(workload), (images[:1],))
        plan = resolve_recipe(recipe, traced, STEPS_PER_EPOCH)
        duals[name] = compile_plan(plan, traced).train()
        duals[name].refresh(last_step(plan))
    losses = [loss_of(copy.deepcopy(dual).double(), images.double(), labels, "fp32").item()
              for dual in duals.values()]  # fmt: skip
    modules = {"dense": build(workload).train(), **duals}
    steps, peaks = {}, {}
    for name, module in modules.items():
        module.to(device).to(memory_format=torch.channels_last)
        given = images.to(device), labels.to(device)
        steps[name] = stepper(module, *given, asked.precision)
        steps[name]()
        peaks[name] = peak_of(steps[name], device, [*module.parameters(), *module.buffers()])
    samples = interleave(steps, device, rounds=asked.rounds, times=asked.steps)
    return {
        "network": network, "unit": unit, "sparsity": sparsity, "batch": batch, "size": size,
        "precision": asked.precision,
        "difference": abs(losses[0] - losses[1]) / abs(losses[0]),
        "counted": training_cost(duals["kept"].plan),
        "seconds": {name: spread(values) for name, values in samples.items()},
        "ratios": ratios(samples),
        "peak_bytes": peaks if device.type == "cpu" else None,  # on a GPU all three are there
    }  # fmt: skip


def stepper(module, images: Tensor, labels: Tensor, precision: str):
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(module, images, labels, precision).backward()
        optimizer.step()

    return step


def loss_of(module, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    enabled = precision == "bf16"
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=enabled):
        outputs = module(images)
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs.float(), labels)
    return total_loss(module.plan, outputs, labels, last_step(module.plan))


def show(entry: dict) -> None:
    def ratio(pair: str) -> str:
        values = entry["ratios"][pair]
        return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"

    print(
        f"{entry['network']}, {entry['sparsity']} of each layer's {entry['unit']}s, "
        f"{entry['precision']}, {entry['batch']} x {entry['size']} px: kept alone "
        f"{ratio('kept/dense')} dense steps, counted {entry['counted']:.2f}, as usual "
        f"{ratio('ours/dense')}; losses differ by {entry['difference']:.0e}",
        flush=True,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="resnet18", help=f"some of {', '.join(WORKLOADS)}")
    parser.add_argument("--units", default="filter,channel")
    parser.add_argument("--sparsities", default="50,75", help="in per cent")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, help="default: by network and device")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
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
