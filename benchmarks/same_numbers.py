"""Whether a change of the code changes a number: this checkout and an older commit train alike.

    python benchmarks/same_numbers.py main
    python benchmarks/same_numbers.py HEAD~1 --recipes 'scores/*' --set data.image_size=16

Each trains every recipe of the commit on the digits, on the CPU with one thread. The tensors of
`sparse.safetensors` and the losses of `metrics.jsonl` must be equal to the bit. A recipe that does
not take the shorter run (`train.epochs`) or a `--set` is trained without it, by both alike.

In:   a commit of this repository.
Out:  a table; exit status 1 if anything differs.
Not:  no claim across machines or versions of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # older Pythons lack it
HERE = Path(__file__).resolve().parent.parent
LEFT_OUT = ("resnet50.prune",)  # of ImageNet
CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import dcil_dsl as dcil
from pathlib import Path
assert Path(dcil.__file__).parent.parent == Path(sys.argv[1]), dcil.__file__
asked = json.loads(sys.argv[2])
home = Path(asked["recipes"])
ZOO = {"resnet18": "torchvision:resnet18"}
for name in asked["names"]:
    changes, out = dict(asked["changes"]), Path(asked["out"]) / name
    while True:
        try:
            recipe = dcil.load(home / name, overrides=changes)
            own = recipe.model.name if recipe.model else "resnet20"
            dcil.train(
                recipe, ZOO.get(own, f"dcil:{own}"), "digits", out=out, device="cpu", workers=0,
                max_steps=asked["max_steps"], warn=lambda _: None,
            )
            entry = {"changes": changes}
        except dcil.RecipeError as error:
            if changes:
                changes.popitem()
                continue
            entry = {"error": str(error)}
        except (dcil.InputError, dcil.SparsityError) as error:
            entry = {"error": str(error)}
        break
    print("RESULT", json.dumps(entry | {"recipe": name}), flush=True)
"""


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        old = unpack(asked.commit, Path(folder) / "code")
        recipes = old / "recipes"
        names = sorted(
            str(path.relative_to(recipes))
            for pattern in asked.recipes.split(",")
            for path in recipes.glob(pattern)
            if path.suffix == ".prune" and path.name not in LEFT_OUT
        )
        order = {
            "recipes": str(recipes),
            "names": names,
            "max_steps": asked.max_steps,
            "changes": changes_of(asked),
        }
        outs = [Path(folder) / "old", Path(folder) / "new"]
        before, after = (
            run(code, order | {"out": str(out)})
            for code, out in zip((old, HERE), outs, strict=True)
        )
        rows = [
            (name, *compare(before[name], after[name], *(out / name for out in outs)))
            for name in names
        ]
    show(rows, asked.commit)
    return int(any(not same for _, same, _ in rows) or not rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", help="what this checkout is compared with")
    parser.add_argument("--recipes", default="**/*.prune", help="patterns, separated by commas")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def changes_of(asked: argparse.Namespace) -> dict[str, str]:
    """Settings to replace; the last ones are given up first."""
    given = dict(pair.split("=", 1) for pair in asked.set)
    return given | {"train.epochs": f"{asked.epochs}ep"}


def unpack(commit: str, into: Path) -> Path:
    """The tree of a commit as plain files."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=HERE, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(into, **SAFELY)
    return into.resolve()


def run(code: Path, order: dict[str, object]) -> dict[str, dict[str, object]]:
    """{recipe: its entry} of one version of the code, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(code), json.dumps(order)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=code,
    )
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or len(lines) != len(order["names"]):
        sys.exit(f"{code} failed after {len(lines)} recipes:\n{done.stderr[-3000:]}")
    return {entry["recipe"]: entry for entry in map(json.loads, lines)}


def compare(before: dict, after: dict, old: Path, new: Path) -> tuple[bool, str]:
    """Whether both runs are equal, and what was compared or what differs."""
    if before != after:
        return False, f"{before} and {after}"
    if "error" in before:
        return True, f"refused by both: {before['error'].splitlines()[0][:80]}"
    mine, theirs = read_tensors(old), read_tensors(new)
    if mine.keys() != theirs.keys():
        return False, f"other tensors: {sorted(mine.keys() ^ theirs.keys())[:3]}"
    wrong = [name for name in mine if not same_bits(mine[name], theirs[name])]
    if wrong:
        return False, f"{len(wrong)} of {len(mine)} tensors, {wrong[0]}"
    if read_losses(old) != read_losses(new):
        return False, f"losses: {read_losses(old)} and {read_losses(new)}"
    zeros = sum(int((tensor == 0).sum()) for tensor in mine.values() if tensor.dim() > 1)
    kept_alike = "" if "train.epochs" in before["changes"] else ", epochs as in the recipe"
    return True, f"{len(mine)} tensors, {zeros:,} zeros{kept_alike}"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (one, other)))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "sparse.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def read_losses(folder: Path) -> list[object]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("losses") for line in lines]


def show(rows: list[tuple[str, bool, str]], commit: str) -> None:
    table = Table("recipe", "", "what", title=f"this checkout and {commit}")
    for name, same, what in rows:
        table.add_row(name, "equal" if same else "[red]DIFFERS[/red]", what)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"{sum(same for _, same, _ in rows)} of {len(rows)} equal")


if __name__ == "__main__":
    sys.exit(main())
