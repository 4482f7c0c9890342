"""One run of the main job within a time: its accuracy, its sparsity, its seconds.

    python benchmarks/train_run.py recipes/quickstart.prune --model dcil:resnet20 --data digits

With --seconds, a short run first tells how long an epoch takes, and the recipe is given as many
epochs as fit, its own number at most: `epochs` of `recipe_epochs` is reported. The ramp and the
opening of the losses are parts of the run in the shipped recipes, and shrink with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from environment import describe_machine
from workloads import ROOT, load

from dcil_dsl.jobs.train import Run, train

PROBE_STEPS = 60
RESERVE = 0.8  # of the time is planned for; the rest is for what a probe cannot see


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dir", type=Path, help="where the data lie")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, help="default: the whole recipe")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    began = time.perf_counter()
    recipe_path = asked.recipe if asked.recipe.exists() else ROOT / asked.recipe
    recipe_epochs = epochs_of(recipe_path)
    with tempfile.TemporaryDirectory() as scratch:

        def run(name: str, overrides: dict, **options) -> Run:
            return train(
                recipe_path,
                asked.model,
                asked.data,
                overrides=overrides,
                directory=asked.dir,
                out=Path(scratch) / name,
                device=asked.device,
                precision=asked.precision,
                compile=asked.compile,
                **options,
            )

        epochs, probe = recipe_epochs, None
        if asked.seconds is not None:
            probe = run("probe", {}, max_steps=PROBE_STEPS)
            if probe.interrupted:
                return stopped()
            rate = probe.result.step / epoch_seconds(probe)
            an_epoch = probe.plan.steps_per_epoch / rate
            # What is over a step of the probe is evaluation and its like, once an epoch.
            an_epoch += max(probe.result.seconds - epoch_seconds(probe), 0)
            left = RESERVE * (asked.seconds - (time.perf_counter() - began))
            epochs = max(1, min(recipe_epochs, int(left / an_epoch)))
        overrides = {} if epochs == recipe_epochs else {"train.epochs": f"{epochs}ep"}
        done = run("run", overrides)
        if done.interrupted:
            return stopped()
        report = {
            "machine": describe_machine("cuda" if torch.cuda.is_available() else "cpu"),
            "recipe": done.plan.recipe.name,
            "epochs": epochs,
            "recipe_epochs": recipe_epochs,
            "device": asked.device,
            "precision": asked.precision or done.plan.train.precision,
            "compiled": asked.compile,
            "top1": {path: a["top1"] for path, a in done.result.accuracies.items()},
            "sparsity_asked": done.result.sparsity_asked,
            "sparsity_measured": done.result.sparsity_measured,
            "kept": done.result.num_kept,
            "weights": done.result.num_weights,
            "seconds": done.result.seconds,
            "examples_per_second": done.result.examples_per_second,
            "training_examples_per_second": [
                line["examples_per_second"] for line in done.folder.read_metrics()
            ],
            "cost": done.result.cost,
            "expect": [f"{c.text}: {c.measured:.4f} {c.holds}" for c in done.claims],
            "holds": done.holds,
        }
    text = json.dumps(report, indent=2)
    if asked.json:
        asked.json.write_text(text + "\n")
    print(text)
    # A shortened recipe claims nothing.
    return 0 if done.holds or epochs < recipe_epochs else 1


def stopped() -> int:
    print("the run was stopped by a signal before its end", file=sys.stderr)
    return 1


def epochs_of(recipe: Path) -> int:
    """The number of epochs that the recipe's `train` block writes, in whole epochs."""
    time_asked = load(recipe).train.epochs
    return int(time_asked.value)


def epoch_seconds(run: Run) -> float:
    """Seconds in training steps, of all its epochs."""
    return sum(line["seconds"] for line in run.folder.read_metrics())


if __name__ == "__main__":
    sys.exit(main())
