"""Filters of whole models are set to zero and removed: how much goes, and is it the same network?

    python benchmarks/compaction.py [--models resnet50,vit_b_16] [--part 0.4] [--json FILE]

Every convolution and linear layer of a model loses the same part of its rows, at random; biases and
norms are random, so that a dead row still gives a number that the next layer needs. The smaller
network is compared with the zeroed one in float64 and in float32, rebuilt from its shape file, and
expanded back into the original. Costs are measured, with the batch and the device named. Exit
status 1 where a difference is above 1e-5 (float32) or 1e-10 (float64), or a way back does not lead
back.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import torch
from environment import ROOT, describe_machine

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "extras" / "compact"))
from zeroed import enliven, zero_heads, zero_rows

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.load import rebuild_compact
from dcil_dsl.extras.compact.report import measure
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.zoo import build_model

SIZES = {"vit_b_16": 224, "inception_v3": 96, "maxvit_t": 224}  # the others take 64
TIMM = (
    "vit_tiny_patch16_224",
    "resnet26d",
    "convnextv2_atto",
    "mixer_s32_224",
    "efficientnet_lite0",
)
MODELS = (
    "dcil:resnet20",
    *(
        f"torchvision:{name}"
        for name in (
            "alexnet",
            "vgg11_bn",
            "resnet18",
            "resnet50",
            "resnext50_32x4d",
            "squeezenet1_1",
            "densenet121",
            "googlenet",
            "inception_v3",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "shufflenet_v2_x1_0",
            "efficientnet_b0",
            "efficientnet_v2_s",
            "regnet_x_400mf",
            "regnet_y_400mf",
            "convnext_tiny",
            "swin_t",
            "vit_b_16",
            "maxvit_t",
        )
    ),
    *(f"timm:{name}" for name in TIMM),
)


def run(spec: str, part: float, device: torch.device, batch: int) -> dict:
    name = spec.partition(":")[2]
    size = 224 if name.endswith("224") else SIZES.get(name, 64)
    torch.manual_seed(0)

    def build():
        return build_model(spec, 10).eval()

    model = zero_heads(zero_rows(enliven(build()), part), part)
    x = torch.randn(2, 3, size, size)
    started = time.perf_counter()
    result = compact(model, (x,), num_inputs=3)
    seconds = time.perf_counter() - started
    double = compact(copy.deepcopy(model).double(), (x.double(),), num_inputs=2)
    rebuilt = rebuild_compact(result.shapes, result.tensors, build())
    expanded = build()
    expanded.load_state_dict(result.expand(), strict=True)
    with torch.no_grad():
        y = result.model(x)
        same = torch.equal(rebuilt(x), y)
        back = ((expanded(x) - model(x)).abs().max() / (1 + model(x).abs().max())).item()
    inputs = Inputs.of(torch.randn(batch, 3, size, size, device=device))
    measured = measure(model.to(device), result.model.to(device), inputs)
    return {
        "model": spec,
        "difference_float32": result.difference,
        "difference_float64": double.difference,
        "difference_expanded": back,
        "rebuilt_equals": same,
        "class": type(result.model).__name__,
        "seconds": seconds,
        **measured.to_dict(),
    }


def show(entry: dict) -> str:
    before, after = entry["before"], entry["after"]
    return (
        f"{entry['model']:34} {before['parameters'] / 1e6:7.2f} M -> "
        f"{after['parameters'] / 1e6:6.2f} M  MACs {after['macs'] / before['macs']:4.0%}  "
        f"{before['milliseconds']:7.1f} -> {after['milliseconds']:6.1f} ms  "
        f"{entry['difference_float32']:.0e} {entry['difference_float64']:.0e} "
        f"{entry['difference_expanded']:.0e}  {entry['seconds']:5.1f} s"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", help="names, separated by commas; else all")
    options.add_argument("--part", type=float, default=0.4, help="of the rows of each layer")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    chosen = given.models.split(",") if given.models else None
    device, entries, failed = torch.device(given.device), [], 0
    for spec in MODELS:
        if chosen is not None and spec.partition(":")[2] not in chosen:
            continue
        try:
            entry = run(spec, given.part, device, given.batch)
        except InputError as error:
            failed += 1
            entries.append({"model": spec, "refused": str(error)})
            print(f"{spec:34} REFUSED {error}", flush=True)
            continue
        good = entry["rebuilt_equals"] and entry["difference_expanded"] < 1e-5
        failed += not good
        entries.append(entry)
        print(show(entry) + ("" if good else "  NOT SAME"), flush=True)
    if given.json:
        text = json.dumps({"machine": describe_machine(given.device), "models": entries}, indent=1)
        given.json.write_text(text + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
