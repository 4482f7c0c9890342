"""How far the compiled step is from the plainly written reference, on whole models in float64.

    python benchmarks/exactness.py [--quick] [--models resnet50,swin_t] [--json FILE]

The reference and the comparison are those of tests/support: outputs, losses, every gradient, the
weights after the steps and the statistics, with a refresh of the masks at every other step. The
models are the library's own, not the narrow ones of the tests. Exit status 1 above 1e-9.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
from pathlib import Path

import torch
from environment import describe_machine
from workloads import ROOT, build_model, compile_plan, resolve_recipe, trace_model

sys.path.insert(0, str(ROOT / "tests"))
from support.comparison import DCIL, RECIPE, worst_difference

from dcil_dsl.lang import loads

BOUND = 1e-9
NORMS, HEAD = "private BatchNorm2d", "private last Linear"
ALL = "Conv2d, Linear except last Linear"
# name: what builds it, the side of the images, what is pruned, what is private
MODELS = {
    "resnet32": ("dcil:resnet32", 32, "Conv2d", f"{NORMS} {HEAD}"),
    "resnet18": ("torchvision:resnet18", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "resnet50": ("torchvision:resnet50", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "mobilenet_v2": ("torchvision:mobilenet_v2", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "densenet121": ("torchvision:densenet121", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "vgg16_bn": ("torchvision:vgg16_bn", 64, ALL, f"{NORMS} {HEAD}"),
    "efficientnet_b0": ("torchvision:efficientnet_b0", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "regnet_y_400mf": ("torchvision:regnet_y_400mf", 64, "Conv2d", f"{NORMS} {HEAD}"),
    "convnext_tiny": ("torchvision:convnext_tiny", 64, ALL, f"private LayerNorm2d {HEAD}"),
    "vit_b_16": (
        "torchvision:vit_b_16",
        224,  # the only size it takes
        "Linear, MultiheadAttention except last Linear",
        f"private LayerNorm {HEAD}",
    ),
    "swin_t": (
        "torchvision:swin_t",
        64,
        "Linear except last Linear",
        f"private LayerNorm {HEAD}",
    ),
}
QUICK = ("resnet32", "resnet18")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", help="of " + ", ".join(MODELS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="only " + " and ".join(QUICK))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    names = asked.models.split(",") if asked.models else QUICK if asked.quick else tuple(MODELS)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"no model here is called {', '.join(unknown)}")
    report = {"machine": describe_machine(asked.device), "bound": BOUND, "models": {}}
    print(f"{'model':16} {'weights':>12} {'train':>9} {'eval':>9} {'compile':>9} {'seconds':>8}")
    for name in names:
        entry = report["models"][name] = measure(name, asked)
        print(
            f"{name:16} {entry['weights']:12,} {entry['train']:9.1e} {entry['eval']:9.1e} "
            f"{entry['compile_seconds']:7.2f} s {entry['seconds']:6.0f} s",
            flush=True,
        )
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=2) + "\n")
    worst = max(max(entry["train"], entry["eval"]) for entry in report["models"].values())
    print(f"worst {worst:.1e}, asked for at most {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


def measure(name: str, asked: argparse.Namespace) -> dict:
    """The worst difference in each mode, the seconds from text and model to the dual graph."""
    spec, size, prune, private = MODELS[name]
    began = time.perf_counter()
    entry = {"weights": sum(p.numel() for p in build_model(spec, 10).parameters())}
    for mode in ("train", "eval"):
        torch.manual_seed(0)
        model = build_model(spec, 10).double().to(asked.device)
        with contextlib.redirect_stdout(io.StringIO()):
            entry[mode] = worst_difference(
                model,
                size,
                prune=prune,
                private=private,
                training=mode == "train",
                steps=asked.steps,
                batch=asked.batch,
            )
        del model
        gc.collect()
    entry["compile_seconds"] = compile_seconds(spec, prune, private)
    entry["seconds"] = time.perf_counter() - began
    return entry


def compile_seconds(spec: str, prune: str, private: str) -> float:
    model = build_model(spec, 10)
    text = RECIPE.format(
        prune=prune, keep="keep first Conv2d", private=private, updates=DCIL, sparsity="90%"
    )
    began = time.perf_counter()
    traced = trace_model(model)
    compile_plan(resolve_recipe(loads(text), traced, steps_per_epoch=10), traced)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
