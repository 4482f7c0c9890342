"""How the time to compile grows with the nodes of a network.

    python benchmarks/scale.py [--nodes 100,1000,20000] [--json FILE]

The networks and the recipe are those of tests/compiler/test_scale.py, which counts calls where
this one reads the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from environment import describe_machine
from workloads import ROOT, compile_plan, resolve_recipe, trace_model

sys.path.insert(0, str(ROOT / "tests"))
from support.deep_chain import RECIPE, Chain

from dcil_dsl.lang import loads

NODES = (100, 300, 1000, 3000, 10_000, 20_000)
PER_BLOCK = 4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", default=",".join(map(str, NODES)))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    measure(25)  # what is imported and cached at the first use
    report = {"machine": describe_machine("cpu"), "networks": []}
    print(f"{'nodes':>7} {'trace':>9} {'resolve':>9} {'compile':>9} {'a node':>9}")
    for nodes in map(int, asked.nodes.split(",")):
        entry = measure(nodes // PER_BLOCK)
        report["networks"].append(entry)
        parts = [entry[part] for part in ("trace", "resolve", "compile")]
        row = " ".join(f"{seconds:7.2f} s" for seconds in parts)
        print(f"{entry['nodes']:7,} {row} {1000 * sum(parts) / entry['nodes']:6.2f} ms", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure(blocks: int) -> dict:
    """Seconds of each stage for a model of `blocks` blocks."""
    model, recipe = Chain(blocks, width=4), loads(RECIPE)
    times = [time.perf_counter()]
    traced = trace_model(model)
    times.append(time.perf_counter())
    plan = resolve_recipe(recipe, traced, steps_per_epoch=10)
    times.append(time.perf_counter())
    compile_plan(plan, traced)
    times.append(time.perf_counter())
    stages = {
        name: later - earlier
        for name, earlier, later in zip(
            ("trace", "resolve", "compile"), times, times[1:], strict=False
        )
    }
    return {"nodes": len(traced.train.nodes)} | stages


if __name__ == "__main__":
    sys.exit(main())
