"""What the benchmarks measure: a network, the shipped recipe that prunes it, and two sizes.

In:   the name of a workload.
Out:  the model, the plan and the dual graph; how long each stage from recipe to dual took.
Not:  no timing of steps (step_cost.py).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout need not be installed to be measured

import torch  # noqa: E402
from torch import nn  # noqa: E402

from dcil_dsl.compiler import compile_plan  # noqa: E402
from dcil_dsl.compiler.dual import Dual  # noqa: E402
from dcil_dsl.lang import load  # noqa: E402
from dcil_dsl.model.trace import trace_model  # noqa: E402
from dcil_dsl.plan.plan import Plan  # noqa: E402
from dcil_dsl.plan.resolve import resolve_recipe  # noqa: E402
from dcil_dsl.zoo import build_model  # noqa: E402

STEPS_PER_EPOCH = 100  # any length does: the last step of the run is the one that is measured


@dataclass(frozen=True)
class Workload:
    """cpu, gpu: the batch and the side of its square images in pixels, on that device."""

    spec: str
    recipe: str
    classes: int
    cpu: tuple[int, int]
    gpu: tuple[int, int]


WORKLOADS = {
    "resnet50": Workload("torchvision:resnet50", "resnet50.prune", 1000, (32, 160), (256, 224)),
    "resnet18": Workload("torchvision:resnet18", "quickstart.prune", 10, (32, 96), (256, 224)),
    "resnet32": Workload(
        "dcil:resnet32", "resnet32_cifar10_dcil90.prune", 10, (128, 32), (128, 32)
    ),
}


def build(workload: Workload) -> nn.Module:
    """The model with the same fresh weights at every call."""
    torch.manual_seed(0)
    return build_model(workload.spec, workload.classes)


def make_dual(workload: Workload, model: nn.Module, size: int) -> tuple[Dual, Plan, dict]:
    """The dual graph as at the last step of its run, the plan, and seconds by stage.

    At the last step the sparsity is the target's, all losses are open and all paths run.
    """
    example = torch.zeros(1, 3, size, size)
    marks = [time.perf_counter()]

    def mark(value):
        marks.append(time.perf_counter())
        return value

    recipe = mark(load(ROOT / "recipes" / workload.recipe))
    traced = mark(trace_model(model, (example,)))
    plan = mark(resolve_recipe(recipe, traced, STEPS_PER_EPOCH))
    dual = mark(compile_plan(plan, traced))
    stages = ("load", "trace", "resolve", "compile")
    seconds = {s: b - a for s, a, b in zip(stages, marks, marks[1:], strict=False)}
    seconds["total"] = marks[-1] - marks[0]
    dual.begin_step(last_step(plan))
    return dual, plan, seconds


def last_step(plan: Plan) -> int:
    return plan.num_steps - 1
