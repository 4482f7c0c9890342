"""Train the shipped recipes that a CPU trains in minutes, with several seeds, into one file.

    python benchmarks/small_recipes.py [--only 'scenes/*'] [--seeds 0,1,2] --out FILE.json
    python benchmarks/small_recipes.py --only 'text/*' --texts DIR --out FILE.json
    python benchmarks/small_recipes.py --show FILE.json

Each is the command of the recipe's first lines with `--seed N` and `--device cpu`, on one thread.
A run that the file holds is not trained again, so the command may be stopped and given again.

In:   for text/: DIR with definitions, verses and sentences, as text_corpora.py makes them.
Out:  the metrics of each path after the last epoch, the measured zeros, seconds.
Not:  no setting is chosen here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from environment import ROOT, describe_machine

RECIPES = ROOT / "recipes"
DIGITS = ("dcil:resnet20", "digits")


class Case(NamedTuple):
    """A recipe, what --model and --train are, and what is set; --data for the texts."""

    recipe: str
    model: str
    data: str
    settings: tuple[str, ...] = ()
    texts: str | None = None

    @property
    def name(self) -> str:
        return ", ".join((self.recipe, *self.settings))


def cases() -> Iterator[Case]:
    yield Case("scenes/labels", "dcil:resnet20", "digits-labels")
    yield Case("scenes/masks", "torchvision:lraspp_mobilenet_v3_large", "digits-masks")
    yield Case("scenes/boxes", "dcil:small_fcos", "digits-boxes")
    for rule in ("poisson", "balanced", "weighted", "powerprop"):
        for settings in ((), ("target=95%",)):
            yield Case(f"physics/{rule}", "dcil:poisson", "poisson", settings)
    yield Case("physics/implicit", "dcil:poisson", "poisson")
    explicit = ("train.optimizer=sgd(lr=0.02)",)  # what implicit.prune is compared with
    yield Case("physics/weighted", "dcil:poisson", "poisson", explicit)
    bert, llama = "hf:BertForSequenceClassification", "hf:LlamaForCausalLM"
    yield Case("text/classification", bert, "text-classification", (), "definitions")
    yield Case("text/next_token", llama, "language-modelling", (), "verses")
    home = RECIPES / "text" / "minilm.py"
    for settings in ((), ("target=90%",)):
        yield Case("text/minilm", f"{home}:Encoder", f"{home}:sentences", settings, "sentences")
    for kind in ("schedules", "training", "allocation"):
        for file in sorted((RECIPES / kind).glob("*.prune")):
            yield Case(f"{kind}/{file.stem}", DIGITS[0], DIGITS[1])
    yield Case("kinds/filters_then_weights", "dcil:resnet20", "digits")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="the recipes, as a pattern of names")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--texts", type=Path, help="the folder of the three text corpora")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path, help="print the table of a file, train nothing")
    asked = parser.parse_args(arguments)
    if asked.show is not None:
        print(table(json.loads(asked.show.read_text())))
        return 0
    if asked.out is None:
        parser.error("--out FILE.json is needed")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    held = {"machine": describe_machine("cpu") | {"threads": 1}, "runs": {}}
    if asked.out.exists():
        held = json.loads(asked.out.read_text())
    chosen = [case for case in cases() if fnmatch(case.recipe, asked.only)]
    status = 0
    for seed in asked.seeds.split(","):
        for case in chosen:
            runs = held["runs"].setdefault(case.name, {})
            if seed in runs or (case.texts and asked.texts is None):
                continue
            try:
                runs[seed] = trained(case, seed, asked.texts)
            except subprocess.CalledProcessError as failed:
                print(f"{case.name}, seed {seed}: status {failed.returncode}\n{failed.stderr}")
                status = 1
                continue
            print(case.name, seed, runs[seed], flush=True)
            asked.out.write_text(json.dumps(held, indent=1) + "\n")
    print(table(held))
    return status


def trained(case: Case, seed: str, texts: Path | None) -> dict[str, Any]:
    """What report.json says of one run. Status 4, a missed expectation, is a result too."""
    with tempfile.TemporaryDirectory(prefix="dcil-recipes-") as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dcil_dsl", "compile", RECIPES / f"{case.recipe}.prune"]
        command += ["--model", case.model, "--train", case.data, "--out", out, "--quiet"]
        command += ["--device", "cpu", "--seed", seed]
        command += [part for setting in case.settings for part in ("--set", setting)]
        if case.texts is not None and texts is not None:
            command += ["--data", texts / case.texts]
        began = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environment, cwd=folder
        )
        if not (out / "report.json").exists():
            raise subprocess.CalledProcessError(
                done.returncode, command, done.stdout, done.stderr[-2000:]
            )
        report = json.loads((out / "report.json").read_text())
    result = report["result"]
    return {
        "metrics": result["accuracies"],
        "zeros": result["sparsity_measured"],
        "cost": result["cost"],
        "status": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "commit": describe_machine("cpu")["commit"],
    }


def table(held: dict[str, Any]) -> str:
    """One line a recipe and a path: each metric, by seed."""
    lines = ["| recipe | path | zeros | metrics, by seed |", "|---|---|---|---|"]
    for name, runs in held["runs"].items():
        for path in next(iter(runs.values()), {"metrics": {}})["metrics"]:
            found = [runs[seed]["metrics"][path] for seed in sorted(runs)]
            metrics = "; ".join(
                f"`{metric}` " + ", ".join(f"{values[metric]:.4g}" for values in found)
                for metric in found[0]
            )
            zeros = ", ".join(f"{runs[seed]['zeros']:.2%}" for seed in sorted(runs))
            lines.append(f"| {name} | {path} | {zeros} | {metrics} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
