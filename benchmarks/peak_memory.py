"""The peak memory of a two-path step over a dense one's: plain, ours, and ours with less memory.

    python benchmarks/peak_memory.py                             # eager, on this CPU
    python benchmarks/peak_memory.py --device cuda --precision bf16 --batch 256 --size 224

One step of each variant of step_cost.py, counted (memory.py) and not timed: a busy machine gives
the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from environment import describe_machine
from step_cost import peak_ratios, peak_text
from variants import NAMES, Setting, make_variant, prepare
from workloads import WORKLOADS  # first: puts the checkout on the path


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    report = {"machine": describe_machine(asked.device), "results": []}
    for network in asked.networks.split(","):
        batch, size = getattr(WORKLOADS[network], "gpu" if asked.device == "cuda" else "cpu")
        setting = Setting(
            network,
            asked.device,
            asked.precision,
            False,
            False,
            asked.batch or batch,
            asked.size or size,
        )
        made, variants = prepare(setting), {}
        for name in NAMES:
            variants[name] = make_variant(name, made, warm_up=0)
            del variants[name].module, variants[name].step  # before the next one is counted
        entry = {
            "setting": asdict(setting),
            "peak_bytes": {name: v.peak_bytes for name, v in variants.items()},
            "peak_ratios": peak_ratios(variants),
        }
        report["results"].append(entry)
        text = f"{network}, {setting.precision}, {setting.batch} x {setting.size} px"
        print(f"{text}: dense {peak_text(entry)}", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(WORKLOADS), help="default: all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, help="default: by network and device")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    return asked


if __name__ == "__main__":
    sys.exit(main())
