"""What a DCIL training step costs: dense, plainly written with two forwards, and compiled by us.

    python benchmarks/step_cost.py --quick
    python benchmarks/step_cost.py --networks resnet50 --json resnet50.json
    python benchmarks/step_cost.py --device cuda --precision bf16 --modes eager,compiled,graphs
    python benchmarks/step_cost.py --also checkpointed             # what less memory costs

Samples are interleaved (dense, plain, ours, dense, ...) and ratios are taken within a round.
First it is shown in float64 that plain and ours have the same loss and the same gradients. A
refresh of the masks is not part of a step: it is measured alone, and as a share of 16 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from environment import describe_machine
from rich.console import Console
from rich.table import Table
from timing import interleave, ratios, seconds_of, spread
from variants import (
    LESS_MEMORY,
    NAMES,
    Materials,
    Setting,
    compare_plain_and_ours,
    make_variant,
    mask_bytes,
    may_be,
    prepare,
)
from workloads import WORKLOADS, build, last_step, make_dual  # first: puts the checkout on the path

from dcil_dsl.training.machine import keep_freed_memory

SAME = 1e-9  # float64; what the tests of the compiler ask for
REFRESH_STEPS = 16  # as often as the shipped recipes refresh


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    torch.backends.cudnn.benchmark = True
    deadline = time.perf_counter() + asked.seconds
    if asked.device == "cpu":
        keep_freed_memory()  # as dcil-compile does; for all variants alike
    report = {"machine": describe_machine(asked.device), "results": []}
    status = 0
    for setting in settings_of(asked):
        if time.perf_counter() > deadline:
            report["results"].append({"setting": asdict(setting), "skipped": "no time was left"})
            write(report, asked)
            continue
        report["results"].append(None)
        for entry in measure(setting, asked, deadline):
            report["results"][-1] = entry
            write(report, asked)
        if not entry["same"]:
            status = 1
    show(report)
    return status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(WORKLOADS), help="default: all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--tf32", default="off", help="off, on or off,on; of fp32 on a GPU")
    parser.add_argument(
        "--modes", default="eager", help="some of eager, compiled, graphs (CUDA graphs: compiled)"
    )
    parser.add_argument("--also", default="", help="checkpointed")
    parser.add_argument("--compile", action="store_true", help="the same as --modes eager,compiled")
    parser.add_argument("--batch", type=int, help="default: by network and device")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--contiguous", action="store_true", help="instead of channels_last")
    parser.add_argument("--plain-masks", default="float", choices=("float", "bool"))
    parser.add_argument("--rounds", type=int, default=7, help="samples of each variant")
    parser.add_argument("--steps", type=int, help="steps in a sample (default 1, on a GPU 5)")
    parser.add_argument("--seconds", type=float, default=3600, help="no round begins after these")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="tiny batches: proves that it runs")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    asked.networks = asked.networks.split(",")
    unknown = set(asked.networks) - set(WORKLOADS)
    if unknown:
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    asked.modes = ["eager", "compiled"] if asked.compile else asked.modes.split(",")
    if not set(asked.modes) <= {"eager", "compiled", "graphs"}:
        parser.error("--modes: some of eager, compiled, graphs")
    if "graphs" in asked.modes and asked.device != "cuda":
        parser.error("--modes graphs: only --device cuda has them")
    asked.also = asked.also.split(",") if asked.also else []
    if not set(asked.also) <= set(LESS_MEMORY):
        parser.error(f"--also: some of {', '.join(LESS_MEMORY)}")
    asked.tf32 = [word == "on" for word in asked.tf32.split(",")]
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    if asked.steps is None:
        asked.steps = 5 if asked.device == "cuda" else 1
    if asked.quick:
        asked.rounds = min(asked.rounds, 2)
    return asked


def settings_of(asked: argparse.Namespace) -> list[Setting]:
    settings = []
    for network in asked.networks:
        batch, size = getattr(WORKLOADS[network], "gpu" if asked.device == "cuda" else "cpu")
        if asked.quick:
            batch, size = 4, min(size, 64)
        basic = Setting(
            network,
            asked.device,
            asked.precision,
            False,
            False,
            batch if asked.quick else asked.batch or batch,
            size if asked.quick else asked.size or size,
            not asked.contiguous,
            asked.plain_masks,
        )
        for tf32 in asked.tf32:
            settings += [
                replace(basic, tf32=tf32, compiled=mode != "eager", graphs=mode == "graphs")
                for mode in asked.modes
            ]
    return settings


def write(report: dict, asked: argparse.Namespace) -> None:
    """Often, so that what was measured survives a later failure."""
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(setting: Setting, asked: argparse.Namespace, deadline: float) -> Iterator[dict]:
    """Everything about one setting; variants for which no time was left are named.

    Where variants are compiled, which may outlast any limit, first an entry of two rounds without
    `plain`, marked preliminary; last the whole.
    """
    allow_tf32(False)
    cold = prepare(setting)
    difference = compare_plain_and_ours(cold, batch=4 if asked.quick else 8)
    allow_tf32(setting.tf32)
    torch._dynamo.reset()
    variants, left_out = {}, []
    also = [name for name in asked.also if may_be(name, setting)]
    for name in ("dense", "ours", *also, "plain"):  # the dearest to do without comes last
        if variants and time.perf_counter() > deadline:
            left_out.append(name)
        else:
            if name == "plain" and setting.compiled:
                yield entry_of(cold, asked, variants, difference, 2, deadline)
            variants[name] = make_variant(name, cold)
    entry = entry_of(cold, asked, variants, difference, asked.rounds, deadline)
    entry.update(preliminary=False, left_out=left_out)
    entry["recipe_to_dual"] = recipe_to_dual(cold, repeats=1 if asked.quick else 3)
    if "ours" in variants:
        entry["refresh"] = measure_refresh(cold, variants, entry["seconds"], asked)
    yield entry


def entry_of(made: Materials, asked, variants, difference, rounds: int, deadline: float) -> dict:
    """The variants that there are, sampled in turns."""
    setting = made.setting
    steps = {name: variants[name].step for name in NAMES if name in variants}
    samples = interleave(steps, made.device, rounds=rounds, times=asked.steps, deadline=deadline)
    first = {name: variant.first_loss for name, variant in variants.items()}
    return {
        "setting": asdict(setting),
        "same": max(difference.values()) < SAME and agree(first, setting),
        "difference": difference,
        "first_loss": first,
        "first_step_seconds": {name: v.first_seconds for name, v in variants.items()},
        "preliminary": True,
        "rounds": len(samples["dense"]),
        "steps_per_sample": asked.steps,
        "seconds": {name: spread(values) for name, values in samples.items()},
        "ratios": ratios(samples),
        "peak_bytes": {name: v.peak_bytes for name, v in variants.items()},
        "peak_ratios": peak_ratios(variants),
        "left_out": [n for n in NAMES if n not in variants and n not in LESS_MEMORY],
        "masks": mask_bytes(made.dual),
    }


def peak_ratios(variants: dict) -> dict[str, float]:
    """The peak of each over the dense step's."""
    peaks = {name: v.peak_bytes for name, v in variants.items() if v.peak_bytes is not None}
    return {f"{n}/dense": b / peaks["dense"] for n, b in peaks.items() if n != "dense"}


def allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def agree(first: dict[str, float], setting: Setting) -> bool:
    """Whether the first losses, in the precision and mode that is timed, are much the same."""
    if "plain" not in first or "ours" not in first:
        return True
    near = 2e-2 if setting.precision == "bf16" or setting.tf32 else 1e-3
    return abs(first["ours"] - first["plain"]) <= near * abs(first["plain"])


def recipe_to_dual(made: Materials, repeats: int) -> dict:
    """Seconds by stage: the first time in this process, and the medians of some more."""
    workload = WORKLOADS[made.setting.network]
    begin = time.perf_counter()
    model = build(workload)
    seconds = {"build_model": time.perf_counter() - begin}
    runs = [make_dual(workload, model, made.setting.size)[2] for _ in range(repeats)]
    again = {stage: spread([run[stage] for run in runs])["median"] for stage in runs[0]}
    return {**seconds, "first": made.stage_seconds, "again": again}


def measure_refresh(made: Materials, variants: dict, seconds: dict, asked) -> dict:
    """Seconds of one refresh of all masks, between steps as in training."""
    device, step = made.device, last_step(made.plan)
    dual = variants["ours"].module

    def refresh():
        dual.refresh(step)

    refresh()
    values = [seconds_of(refresh, 1, device) for _ in range(3 if asked.quick else 9)]
    share = spread(values)["median"] / (REFRESH_STEPS * seconds["ours"]["median"])
    result = {"seconds": spread(values), f"share_of_{REFRESH_STEPS}_steps": share}
    if "plain" in variants:
        net, target = variants["plain"].module, made.plan.groups[0].sparsity
        net.refresh(target)
        values = [seconds_of(lambda: net.refresh(target), 1, device) for _ in range(3)]
        result["plain_seconds"] = spread(values)
    return result


def show(report: dict) -> None:
    console = Console(width=190, highlight=False)
    machine = report["machine"]
    console.print(f"{machine['device']}, torch {machine['torch']}, {machine['threads']} threads")
    table = Table(
        "network",
        "setting",
        "dense ms",
        "plain ms",
        "ours ms",
        "ours/dense",
        "ours/plain",
        "plain/dense",
        "peak MiB",
        "refresh",
        "differs by",
        box=None,
        pad_edge=False,
    )
    for entry in report["results"]:
        setting = entry["setting"]
        kind = "tf32" if setting["tf32"] else setting["precision"]
        mode = "graphs" if setting["graphs"] else "compiled" if setting["compiled"] else "eager"
        text = f"{kind} {mode} {setting['batch']} x {setting['size']} px"
        if "skipped" in entry:
            table.add_row(setting["network"], text, entry["skipped"])
            continue
        times = [entry["seconds"].get(name) for name in NAMES[:3]]
        table.add_row(
            setting["network"],
            text,
            *(f"{1000 * t['median']:.1f}" if t else "-" for t in times),
            *(
                interval(entry["ratios"].get(pair))
                for pair in ("ours/dense", "ours/plain", "plain/dense")
            ),
            peak_text(entry),
            refresh_text(entry.get("refresh")),
            f"{max(entry['difference'].values()):.1e}" + ("" if entry["same"] else " NOT SAME"),
        )
    console.print(table)
    for entry in report["results"]:
        if "skipped" not in entry:
            stages = entry["recipe_to_dual"]
            for name in LESS_MEMORY:
                if name in entry["seconds"]:
                    times = [
                        f"{interval(entry['ratios'][f'{name}/{o}'])} of {o}"
                        for o in ("dense", "ours")
                    ]
                    console.print(f"{entry['setting']['network']}, {name}: {', '.join(times)}")
            again = ", ".join(f"{k} {v:.3f}" for k, v in stages["again"].items())
            console.print(
                f"{entry['setting']['network']}: recipe to dual {stages['first']['total']:.3f} s, "
                f"again {again}; masks {entry['masks']['bytes_per_weight']:g} bytes a weight"
            )


def peak_text(entry: dict) -> str:
    """ "812: plain 1.9, ours 1.8": the dense step's peak in MiB, and the others over it."""
    dense = entry["peak_bytes"].get("dense")
    if dense is None:
        return "-"
    others = [f"{pair.split('/')[0]} {r:.2f}" for pair, r in entry["peak_ratios"].items()]
    return f"{dense / 2**20:.0f}: {', '.join(others)}"


def interval(values: dict | None) -> str:
    if values is None:
        return "-"
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def refresh_text(refresh: dict | None) -> str:
    if refresh is None:
        return "-"
    share = refresh[f"share_of_{REFRESH_STEPS}_steps"]
    return f"{1000 * refresh['seconds']['median']:.1f} ms, {100 * share:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
