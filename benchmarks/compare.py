"""Methods against each other: one network, one schedule, one data set, recipes that differ.

    python benchmarks/compare.py --dir DIR --out benchmarks/results/methods.csv
        [--methods dense,gmp,dpf,dcil] [--targets 90,95,98] [--seeds 0,1,2]
        [--epochs 12 | --passes 24] [--examples 10000] [--image-size 16] [--jobs 2]
        [--start dense:12] [--clients 10] [--recipes recipes/methods]

Each cell of the grid is a run of the main job: recipes/methods/METHOD.prune with the target, the
seed and the length replaced; --recipes names another folder, with another network and other data.
--epochs gives every method as many epochs; --passes gives each the
epochs that cost N passes over the data, so that a method of two paths trains half as long as
one of one path. Both may go into one table: a run is known by all that it depends on.

Runs are never chosen by the test images. A part of the training images is held out as validation;
--split validation trains on the rest and measures there, which is for searching; --split test
trains on all chosen images and measures the last epoch on the test images, which is for reporting.

--start METHOD:EPOCHS begins every run with what a run of METHOD has left, of the same seed and
images; that run comes first where its folder is not in --runs, without the `--set train.*` that are
meant for what follows. --clients trains in rounds of an epoch by `dcil.federate`.

The table is tidy: one row a measured number, `measure` at `at` is `value`. A run's rows are written
at its end, all or none, so the command may be stopped and given again: what is there is not run
anew, and a run that was stopped goes on from its checkpoint in --runs.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path

from environment import describe_machine
from workloads import ROOT

METHODS = ROOT / "recipes" / "methods"
NUM_VALIDATION = 5_000  # the last training images, or pieces of a text, and at most a fifth


LATER = ("start", "clients")  # came when the table had rows: a run without them keeps its key


@dataclass(frozen=True)
class Cell:
    """One run: everything that its numbers depend on, but for the versions of the software.

    recipe_sha256  of the closed text of the recipe, so that a changed method is another cell
    cost           passes over the model a step, in those of a dense one; passes = epochs * cost
    overrides      further `--set`, "train.optimizer=..." separated by "; "
    start          "dense:12": the weights that the run began with; "" is none
    clients        of federated rounds; 0 is an ordinary run
    """

    method: str
    target: float
    seed: int
    network: str
    data: str
    split: str
    examples: int
    image_size: int
    epochs: int
    cost: float
    passes: float
    overrides: str
    recipe_sha256: str
    start: str = ""
    clients: int = 0

    @property
    def key(self) -> str:
        plain = {name: value for name, value in asdict(self).items() if value or name not in LATER}
        text = json.dumps(plain, sort_keys=True)
        return f"{self.method}-{self.target:g}-{self.seed}-{sha256(text.encode()).hexdigest()[:10]}"


COLUMNS = ("run", *(field.name for field in fields(Cell)), "commit", "measure", "at", "value")


def main(arguments: list[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if asked.cell is not None:
        return run_cell(asked, Cell(**json.loads(asked.cell)))
    arguments = arguments if arguments is not None else sys.argv[1:]
    cells = to_do(asked)
    print(f"{len(cells)} runs to do, {len(finished(asked.out))} in {asked.out}", flush=True)
    starts = {start_of(asked, cell) for cell in cells} - {None}
    missing = [cell for cell in starts if not weights_in(asked.runs / cell.key).exists()]
    works = [[(arguments, cell) for cell in which] for which in (missing, cells)]
    return run_all(works[0], asked.jobs) or run_all(works[1], asked.jobs)


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--methods", default="dense,gmp,dpf,dcil")
    asked.add_argument("--targets", default="90,95,98", help="percent of the weights under rules")
    asked.add_argument("--seeds", default="0,1,2")
    length = asked.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="of every method; default: the recipe's")
    length.add_argument("--passes", type=float, help="over the data, of every method")
    asked.add_argument("--recipes", type=Path, default=METHODS, metavar="FOLDER")
    asked.add_argument("--network", default="dcil:resnet20")
    asked.add_argument("--data", default="fashion-mnist")
    asked.add_argument("--dir", type=Path, help="where the data lie")
    asked.add_argument("--examples", type=int, help="training images; default: all")
    asked.add_argument("--image-size", type=int, help="pixels; default: the recipe's")
    asked.add_argument("--split", choices=("validation", "test"), default="test")
    asked.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    asked.add_argument("--out", type=Path, required=True, help="the table, a .csv")
    asked.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders")
    asked.add_argument("--jobs", type=int, default=1, help="processes, one thread each if > 1")
    asked.add_argument("--start", default="", metavar="METHOD:EPOCHS")
    asked.add_argument("--clients", type=int, default=0, help="default: one machine, no rounds")
    asked.add_argument("--evaluate-every", type=int, default=1, metavar="EPOCHS")
    asked.add_argument("--device", default="auto")
    asked.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    asked.add_argument("--compile", action="store_true")
    asked.add_argument("--cell", help=argparse.SUPPRESS)  # one cell as JSON, for a child
    return asked


def grid(asked: argparse.Namespace) -> list[Cell]:
    """Every cell that is asked for, seeds outermost: a table cut short has whole comparisons."""
    methods = asked.methods.split(",")
    targets = [float(target) for target in asked.targets.split(",")]
    cells = []
    for seed in map(int, asked.seeds.split(",")):
        for target in targets:
            cells += [cell_of(asked, method, target, seed) for method in methods]
    return list(dict.fromkeys(cells))  # dense training has one target


def start_of(asked: argparse.Namespace, cell: Cell) -> Cell | None:
    """The run whose weights a run begins with."""
    if not cell.start:
        return None
    method, epochs = cell.start.split(":")
    of_the_data = [item for item in asked.set if not item.startswith("train.")]
    before = vars(asked) | dict(start="", set=of_the_data, epochs=int(epochs), passes=None)
    return cell_of(argparse.Namespace(**before), method, cell.target, cell.seed)


def weights_in(folder: Path) -> Path:
    return folder / "sparse.safetensors"


def cell_of(asked: argparse.Namespace, method: str, target: float, seed: int) -> Cell:
    from dcil_dsl.lang import load

    path = asked.recipes / f"{method}.prune"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in asked.recipes.glob("*.prune")))
        raise SystemExit(f"there is no method {method}; there are {known}")
    recipe = load(path)
    cost, own = planned(recipe, asked)  # the share of a pattern, 50 of 2:4; 0 of dense training
    epochs = asked.epochs or int(recipe.train.epochs.value)
    if asked.passes is not None:
        epochs = max(1, round(asked.passes / cost))
    return Cell(
        method,
        target if is_open(path) else own,
        seed,
        asked.network,
        asked.data,
        asked.split,
        asked.examples or 0,
        asked.image_size or recipe.data.image_size or 0,
        epochs,
        cost,
        epochs * cost,
        "; ".join(asked.set),
        sha256(recipe.text.encode()).hexdigest()[:16],
        asked.start,
        asked.clients,
    )


def is_open(path: Path) -> bool:
    """Whether the recipe leaves its target to whoever runs it, as `let target`."""
    from dcil_dsl.diagnostics import RecipeError
    from dcil_dsl.lang import load

    try:
        load(path, overrides={"target": "50%"})
    except RecipeError:
        return False
    return True


_planned: dict[tuple, tuple[float, float]] = {}


def planned(recipe, asked: argparse.Namespace) -> tuple[float, float]:
    """What a step costs on average, in steps of dense training, and the percent that is pruned."""
    from dcil_dsl.jobs.prepare import no_note, no_warning, prepare
    from dcil_dsl.plan.cost import training_cost
    from dcil_dsl.plan.schedule import sparsity_at

    key = (recipe.text, asked.network)
    if key not in _planned:
        quiet = {"warn": no_warning, "note": no_note}
        plan = prepare(recipe, asked.network, steps_per_epoch=1000, **quiet).plan
        pruned = max((sparsity_at(group, plan.num_steps) for group in plan.groups), default=0.0)
        _planned[key] = round(training_cost(plan), 4), round(100 * pruned, 4)
    return _planned[key]


def finished(table: Path) -> set[str]:
    if not table.exists():
        return set()
    with open(table, newline="") as file:
        return {row["run"] for row in csv.DictReader(file)}


def to_do(asked: argparse.Namespace) -> list[Cell]:
    done = finished(asked.out)
    return [cell for cell in grid(asked) if cell.key not in done]


def run_all(works: list[tuple[list[str], Cell]], jobs: int) -> int:
    """Each cell in a process of its own, started with its arguments, `jobs` at a time."""
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}

    def run(work: tuple[list[str], Cell]) -> tuple[Cell, int]:
        arguments, cell = work
        command = [sys.executable, __file__, *arguments, "--cell", json.dumps(asdict(cell))]
        print(f"{cell.key}: {cell.epochs} epochs", flush=True)
        return cell, subprocess.run(command, env=dict(os.environ) | threads).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [cell.key for cell, status in pool.map(run, works) if status]
    for key in failed:
        print(f"{key} FAILED", file=sys.stderr)
    return 1 if failed else 0


# -- one run ---------------------------------------------------------------------------------------


def run_cell(asked: argparse.Namespace, cell: Cell) -> int:
    """Train one cell and append its rows. Exit status 0 where all is measured."""
    from dcil_dsl.training.machine import keep_freed_memory

    keep_freed_memory()
    overrides = {"train.epochs": f"{cell.epochs}ep", "train.seed": str(cell.seed)}
    recipe = asked.recipes / f"{cell.method}.prune"
    if is_open(recipe):
        overrides["target"] = f"{cell.target:g}%"
    if cell.image_size:
        overrides["data.image_size"] = str(cell.image_size)
    overrides |= dict(part.split("=", 1) for part in cell.overrides.split("; ") if part)
    dataset = open_split(asked, cell)
    if cell.clients:
        rows = federated_measures(recipe, cell, dataset, overrides)
    else:
        rows = trained_measures(recipe, asked, cell, dataset, overrides)
    if rows is None:
        return 1
    if cell.key not in finished(asked.out):  # a run made again for its weights is in it
        append(asked.out, cell, rows)
    top1 = {measure: value for measure, at, value in rows if at == "end"}
    print(f"{cell.key}: top-1 {top1['top1']:.4f}", flush=True)
    return 0


def trained_measures(
    recipe: Path, asked: argparse.Namespace, cell: Cell, dataset, overrides: dict[str, str]
) -> list | None:
    """What one run of the main job measures; None where it was interrupted."""
    from watch import watched

    from dcil_dsl.jobs.train import train

    folder = asked.runs / cell.key
    start = start_of(asked, cell)
    with nullcontext() if asked.compile else watched():
        done = train(
            recipe,
            cell.network,
            dataset,
            overrides=overrides,
            out=folder,
            resume=(folder / "plan.json").exists(),
            device=asked.device,
            weights=start and str(weights_in(asked.runs / start.key)),
            precision=asked.precision,
            compile=asked.compile,
            evaluate_every=asked.evaluate_every,
            warn=lambda warning: None,
        )
    if done.interrupted:
        return None
    return [*measures(done), ("cross_entropy", "end", held_out_loss(done, dataset))]


def held_out_loss(done, dataset) -> float:
    """The mean cross entropy of the deployed network, in nats: steadier over seeds than top-1."""
    import torch

    found = done.result.accuracies[done.plan.deploy]
    if "nll" in found:  # of tokens
        return found["nll"]
    from dcil_dsl.jobs.data import make_loader

    device = next(done.model.parameters()).device
    loader = make_loader(done.plan, dataset, "val", device, workers=0)
    total, seen = 0.0, 0
    for batch in loader.epoch(0):
        inputs, labels = loader.task.inputs(batch), loader.task.targets(batch)
        with torch.no_grad():
            logits = done.model.eval()(*inputs.args).double()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        seen += len(labels)
    return total / seen


def federated_measures(recipe: Path, cell: Cell, dataset, overrides: dict[str, str]) -> list:
    """Rounds of one epoch of each client, one client after another; nothing is resumed."""
    from dcil_dsl.extras.federated.job import federate

    done = federate(
        recipe,
        cell.network,
        dataset,
        clients=cell.clients,
        engine="here",
        overrides=overrides,
    )
    deploy, last = done.plan.deploy, done.rounds[-1]
    rows = [("top1", "end", last["top1"][deploy]), ("sparsity", "end", last["sparsity"])]
    for line in done.rounds:
        rows.append(("top1", line["round"], line["top1"][deploy]))
        rows.append(("sparsity", line["round"], line["sparsity"]))
    return rows


def open_split(asked: argparse.Namespace, cell: Cell):
    """The data set with what the cell trains on and what it is measured on."""
    from torch.utils.data import Subset

    from dcil_dsl.data import open_dataset
    from dcil_dsl.data.dataset import Dataset, Tensors

    whole = open_dataset(cell.data, asked.dir)
    if not isinstance(whole.train, Tensors):  # a text in pieces
        number = len(whole.train)
        held = min(NUM_VALIDATION, number // 5)
        train = Subset(whole.train, range(min(cell.examples or number, number - held)))
        last = Subset(whole.train, range(number - held, number))
        return replace(whole, train=train, val=whole.val if cell.split == "test" else last)
    images, labels = whole.train.images, whole.train.labels
    held = min(NUM_VALIDATION, len(images) // 5)
    train = Tensors(images[:-held], labels[:-held])
    val = whole.val
    if cell.split == "validation":
        val = Tensors(images[-held:], labels[-held:])
    if cell.examples:
        train = Tensors(train.images[: cell.examples], train.labels[: cell.examples])
    if cell.image_size:  # once, and not anew in every batch
        train, val = (Tensors(resized(p.images, cell.image_size), p.labels) for p in (train, val))
    return Dataset(whole.name, train, val, whole.classes, whole.mean, whole.std)


def resized(images, size: int):
    """uint8 (N, C, H, W) to (N, C, size, size), each pixel the mean of what it covers."""
    from torchvision.transforms.v2.functional import resize

    return resize(images.contiguous(), [size, size], antialias=True)


def measures(done):
    """(measure, at, value) of a finished run; `at` is an epoch, a layer, or "end"."""
    result, plan = done.result, done.plan
    yield "top1", "end", result.accuracies[plan.deploy]["top1"]
    for path, accuracy in result.accuracies.items():
        yield f"top1_{path}", "end", accuracy["top1"]
    yield "sparsity", "end", result.sparsity_measured
    yield "seconds", "end", result.seconds
    for line in done.folder.read_metrics():
        if line["top1"]:  # of the epochs that were evaluated
            yield "top1", line["epoch"], line["top1"][plan.deploy]
        yield "sparsity", line["epoch"], line["sparsity_measured"]
        yield "mask_flips", line["epoch"], line["mask_flips"]
        for name, value in line["losses"].items():
            yield f"loss {name}", line["epoch"], value
        for name, value in line.get("watch", {}).items():
            yield name, line["epoch"], value
    report = json.loads(done.folder.report.read_text())
    for layer in report["weights"]["layers"]:
        yield "density", layer["parameter"], layer["num_nonzero"] / layer["num_weights"]


def append(table: Path, cell: Cell, rows: list[tuple]) -> None:
    """All rows of a run in one write under a lock, the head first where the table is new."""
    table.parent.mkdir(parents=True, exist_ok=True)
    commit = describe_machine("cpu")["commit"]
    with open(table, "a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        head = (cell.key, *asdict(cell).values(), commit)
        writer.writerows((*head, measure, at, f"{value:.7g}") for measure, at, value in rows)


if __name__ == "__main__":
    sys.exit(main())
