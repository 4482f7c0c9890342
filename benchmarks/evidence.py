"""The experiments behind docs/results.md, each one command that continues where it stopped.

    python benchmarks/evidence.py clip --dir DIR [--jobs 2]      # stability at 98% zeros
    python benchmarks/evidence.py extreme --dir DIR              # stability at 98 to 99.5%
    python benchmarks/evidence.py rules --dir DIR                # rules and tuned GMP, held out
    python benchmarks/evidence.py chosen --dir DIR               # the best of them, test images
    python benchmarks/evidence.py routing --dir DIR              # who learns from whom, 12 seeds
    python benchmarks/evidence.py tuning --dir DIR               # GMP's for the frontier, held out
    python benchmarks/evidence.py frontier --dir DIR             # long runs: accuracy against cost
    python benchmarks/evidence.py text_tuning --dir TEXTS        # GMP's for text, held out
    python benchmarks/evidence.py text --dir TEXTS               # a small Llama, in nats
    python benchmarks/evidence.py clip --table                   # what is there, nothing is run

Each is a list of grids of compare.py, run in the order of the list into
benchmarks/results/NAME.csv, with seeds outermost: a table that was cut short has whole pairs. At
the end the paired differences are printed (paired.py).

In:   the four files of Fashion-MNIST; TEXTS, as `text_corpora.py verses TEXTS` makes them.
Out:  rows of the tables; paired differences.
Not:  no recipe is written here, and none is chosen by test images or texts: `rules`, `routing` and
      both tunings measure on a part of the training data that is held out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import compare
import paired
from safetensors.torch import load_file
from torch import Tensor
from workloads import ROOT

RESULTS = ROOT / "benchmarks" / "results"
SHORT = ["--image-size", "14", "--examples", "6000", "--set", "data.batch_size=64"]
SHORT += ["--evaluate-every", "4"]
LONG = ["--image-size", "14", "--set", "data.batch_size=128", "--evaluate-every", "5"]
SMOKE = ["--data", "digits", "--image-size", "8", "--examples", "300"]
SMOKE += ["--set", "data.batch_size=64"]


def grid(methods: str, targets: str, length: str, seeds: str, *settings: str) -> list[str]:
    """The arguments of compare.py; length as "epochs 12" or "passes 24"."""
    kind, number = length.split()
    own = ["--methods", methods, "--targets", targets, "--seeds", seeds, f"--{kind}", number]
    return own + [part for setting in settings for part in ("--set", setting)]


CLIPPED = "gmp,st3_rule,dpf_rule"
CLIP = [
    grid(f"{CLIPPED},dcil", "98", "epochs 12", "0"),  # how gradients explode without it
    grid(CLIPPED, "98", "epochs 12", "0,1,2", "train.clip=3"),
    grid(CLIPPED, "98", "epochs 24", "0,1,2", "train.clip=3"),
]

# Where a second path could pay: two paths for 12 epochs beside one for 12, and for the same cost.
EXTREME = [
    cells
    for seed in "012"
    for cells in (
        grid("gmp,dcil,st3_rule,dpf_rule", "98,99,99.5", "epochs 12", seed),
        grid("st3_rule,dpf_rule", "98,99,99.5", "epochs 12", seed, "train.clip=3"),
        grid("gmp", "98,99,99.5", "passes 24", seed),
        grid("st3_rule", "98,99,99.5", "passes 24", seed, "train.clip=3"),
    )
]

# Chosen among on held-out images. Feather's authors give the feedback whole up to 95% zeros.
RULES = "gmp,st3_rule,soft_damped,soft_fading,soft_reserve,soft_kept,soft_settled,soft_dcil,st3,"
RULES += "granet,iee,ham,soft_narrowing"


def tuned(end: int, rate: float) -> tuple[str, ...]:
    """GMP with another end of its ramp, in percent of the run, and another learning rate."""
    return f"pruning.schedule=cubic(0ep..{end}% run)", f"train.optimizer.lr={rate}"


def rules_of(seed: str, target: str) -> list[list[str]]:
    share = "share=0.5" if float(target) > 95 else "share=1"
    alone = grid("feather", target, "passes 24", seed, share, "train.clip=3")
    return [grid(RULES, target, "passes 24", seed, "train.clip=3"), alone]


GMP_GRID = [
    grid("gmp", "95,98,99", "passes 24", "0", *tuned(end, rate), "train.clip=3")
    for end in (50, 70, 85)
    for rate in (0.05, 0.1, 0.2)
    if (end, rate) != (70, 0.1)  # as the recipe has them
]
HELD_OUT = [
    rule for seed in "01" for target in ("98", "95", "99") for rule in rules_of(seed, target)
]
RULES_AND_GRID = [cells + ["--split", "validation"] for cells in HELD_OUT + GMP_GRID]

# The rule with the largest mean lead of the three sparsities, beside GMP with its recipe's setting,
# which is the best of its nine at 98%, and with the best of the nine at 95 and 99%: on test images,
# with seeds that had no part in the choice.
CHOSEN = [
    cells
    for seed in "23456"
    for cells in (
        grid("gmp,soft_fading", "95,98,99", "passes 24", seed, "train.clip=3"),
        grid("gmp", "95,99", "passes 24", seed, *tuned(85, 0.2), "train.clip=3"),
    )
]

# kept by x pruned by, as (sparse, dense) shares; those of the kept weights sum to 1.
KEPT = ((1, 0), (0.5, 0.5), (0, 1))
PRUNED = ((0, 0), (1, 0), (0, 1))
ROUTES = [(*kept, *pruned, 1) for kept in KEPT for pruned in PRUNED]
ROUTES += [(1, 0, 0, 1, 0), (0.5, 0.5, 0, 1, 0)]  # without distillation
NUMBERS = ("kept_sparse", "kept_dense", "pruned_sparse", "pruned_dense", "distil")


def routing_of(seed: int) -> list[list[str]]:
    settings = [[f"{n}={x:g}" for n, x in zip(NUMBERS, route, strict=True)] for route in ROUTES]
    runs = [grid("routing", "95", "epochs 12", str(seed), *own) for own in settings]
    return [grid("gmp", "95", "epochs 12", str(seed)), *runs]


ROUTING = [cells + ["--split", "validation"] for seed in range(12) for cells in routing_of(seed)]

# All 55,000 images, the rates of DCIL's authors: decay times their sum over 1 - momentum is 9.1 at
# 40 epochs (12.3 in their 300), where the short runs have 0.28. All clip, as ST-3's authors do.
RATES = "train.lr=multistep(at=[50% run, 75% run], gamma=0.1, warmup=1ep)"


def long_runs(methods: str, cost: int, seeds: str, *settings: str) -> list[str]:
    return grid(methods, "95,98", f"passes {cost}", seeds, RATES, "train.clip=3", *settings)


RATE = "train.optimizer.lr=0.2"
TUNING = [
    long_runs("gmp", 10, "0", *tuned(end, rate)) + ["--split", "validation"]
    for end in (50, 70, 85)
    for rate in (0.1, 0.2, 0.4)
]
FIRST, SECOND = "gmp,soft_fading,dcil,dense", "st3,feather"  # where it is cut short
FRONTIER = [
    long_runs(methods, cost, str(seed), RATE)
    for methods, costs in ((FIRST, (10, 40)), (SECOND, (10, 40)), (FIRST, (20,)), (SECOND, (20,)))
    for cost in costs
    for seed in range(3)
]

# A second kind of task: the next token of a text. The cost is in passes over it.
TEXTS = ["--recipes", str(ROOT / "recipes" / "methods_text"), "--evaluate-every", "4"]
TEXTS += ["--network", "hf:LlamaForCausalLM", "--data", "language-modelling"]
TEXT_TUNING = [
    [*grid("gmp", "90", "passes 4", "0", *tuned(end, rate)), "--split", "validation"]
    for end in (50, 70, 85)
    for rate in (0.001, 0.002, 0.004)
]
TEXT = [
    grid(methods, "80,90,95", f"passes {cost}", str(seed))
    for methods, cost in ((FIRST, 4), ("st3_rule,dpf_rule", 4), (FIRST, 8))
    for seed in range(3)
]
DCIL = ", ".join(f"{name}={number:g}" for name, number in zip(NUMBERS, (1, 0, 0, 1, 1)))


@dataclass(frozen=True)
class Experiment:
    """Grids of compare.py, what they have in common, and what is printed of them.

    against  the method that the others are compared with
    also     measures that are listed beside `measure`
    """

    grids: list[list[str]]
    also: tuple[str, ...]
    against: str = "gmp"
    common: list[str] = field(default_factory=lambda: SHORT)
    measure: str = "top1"


EXPERIMENTS = {
    "clip": Experiment(CLIP, ("grad_norm_max", "dead_filters"), "gmp, train.clip=3"),
    "extreme": Experiment(EXTREME, ("grad_norm_max", "dead_filters")),
    "rules": Experiment(RULES_AND_GRID, ("dead_filters", "revived")),
    "chosen": Experiment(CHOSEN, ("cross_entropy", "dead_filters")),
    "routing": Experiment(ROUTING, ("revived", "cosine", "kept_as_gmp"), f"routing, {DCIL}"),
    "tuning": Experiment(TUNING, ("cross_entropy",), common=LONG),
    "frontier": Experiment(FRONTIER, ("cross_entropy", "dead_filters"), common=LONG),
    "text_tuning": Experiment(TEXT_TUNING, ("top1",), common=TEXTS, measure="cross_entropy"),
    "text": Experiment(TEXT, ("top1", "dead_filters"), common=TEXTS, measure="cross_entropy"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("--dir", type=Path, help="where the data lie")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help="one epoch of digits, into it")
    asked = parser.parse_args(arguments)
    experiment, table, status = EXPERIMENTS[asked.name], RESULTS / f"{asked.name}.csv", 0
    grids, common = experiment.grids, experiment.common
    if asked.smoke is not None:
        table, asked.runs, grids = asked.smoke / "smoke.csv", asked.smoke / "runs", shortened(grids)
        common = SMOKE if common is not TEXTS else [*TEXTS, "--examples", "64"]
    where = ["--out", str(table), "--runs", str(asked.runs), "--jobs", str(asked.jobs)]
    where += [] if asked.dir is None else ["--dir", str(asked.dir)]
    grids = [[*cells, *common, *where] for cells in grids]
    if not asked.table:
        works = {cell.key: (cells, cell) for cells in grids for cell in to_do(cells)}
        print(f"{len(works)} runs to do into {table}", flush=True)
        status = compare.run_all(list(works.values()), asked.jobs)
    if asked.name == "routing" and not asked.table:
        compare_masks(table, asked.runs, grids)
    arms, also = paired.read_arms(table, experiment.measure), experiment.also
    print(paired.markdown(table, arms, experiment.against, also, measure=experiment.measure))
    return status


def to_do(arguments: list[str]) -> list[compare.Cell]:
    return compare.to_do(compare.parser().parse_args(arguments))


def shortened(grids: list[list[str]]) -> list[list[str]]:
    """The grids with one seed, one sparsity and one epoch, each once."""
    one = {"--epochs": "1", "--passes": "1", "--seeds": "0", "--targets": "95"}
    short = []
    for cells in grids:
        pairs = zip(cells[::2], cells[1::2], strict=True)
        cells = [x for name, value in pairs for x in (name, one.get(name, value))]
        short += [] if cells in short else [cells]
    return short


def compare_masks(table: Path, runs: Path, arguments: list[list[str]]) -> None:
    """Append to each run of the routing which share of its kept weights GMP of its seed keeps."""
    parser, done = compare.parser(), compare.finished(table)
    grids = [compare.grid(parser.parse_args(cells)) for cells in arguments]
    cells = [cell for cells in grids for cell in cells if cell.key in done]
    kept = {cell: kept_of(compare.weights_in(runs / cell.key)) for cell in cells}
    gmp = {cell.seed: kept[cell] for cell in cells if cell.method == "gmp"}
    known = paired.runs_with(table, "kept_as_gmp")
    for cell in cells:
        if cell.method != "gmp" and cell.key not in known:
            both = sum(int((kept[cell][n] & gmp[cell.seed][n]).sum()) for n in kept[cell])
            share = both / sum(int(mask.sum()) for mask in kept[cell].values())
            compare.append(table, cell, [("kept_as_gmp", "end", share)])


def kept_of(weights: Path) -> dict[str, Tensor]:
    """Which weights of the convolutions a run has kept."""
    return {n: tensor != 0 for n, tensor in load_file(weights).items() if tensor.dim() == 4}


if __name__ == "__main__":
    sys.exit(main())
