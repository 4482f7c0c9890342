"""What a step costs on several processes: whole weights (DDP) and weights in parts (--shard).

    torchrun --nproc-per-node 8 benchmarks/rank_cost.py --network resnet50 --device cuda
    torchrun --nproc-per-node 2 benchmarks/rank_cost.py --network resnet32 --batch 8 --steps 2

One line of JSON from the first process: for each way the median seconds of a step of `batch`
examples a process, the bytes of weights and masks that a process holds between steps, and on a
GPU the most that it held at any moment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from environment import describe_machine
from workloads import WORKLOADS, build, last_step, make_dual  # first: puts the checkout on the path

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.extras.sharding.step import shard_for_step
from dcil_dsl.jobs.data import pick_device
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks, joined_ranks
from dcil_dsl.training.losses import open_losses
from dcil_dsl.training.machine import Options
from dcil_dsl.training.optim import make_optimizer
from dcil_dsl.training.step import Batch, GradientStep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=WORKLOADS, default="resnet50")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, help="examples a process; else the workload's")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    with joined_ranks() as ranks:
        if ranks.count == 1:
            parser.error("start it by torchrun --nproc-per-node N")
        device = pick_device(asked.device, ranks)
        found = {"ranks": ranks.count, "asked": vars(asked), "machine": describe_machine(device)}
        for way in ("whole", "parts"):
            found[way] = measure(way == "parts", asked, ranks, device)
        if ranks.is_first:
            print(json.dumps(found, default=str))


def measure(in_parts: bool, asked, ranks: Ranks, device: torch.device) -> dict:
    """Seconds and bytes of one way, as the slowest and the largest process has them."""
    workload = WORKLOADS[asked.network]
    batch, size = workload.gpu if device.type == "cuda" else workload.cpu
    dual, plan, _ = make_dual(workload, build(workload), size)
    options = Options(device=device, precision=asked.precision, ranks=ranks, shard=in_parts)
    make_step = shard_for_step(dual, options) if in_parts else GradientStep
    dual.to(device).train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    shape = (asked.batch or batch, 3, size, size)
    step = stepping(make_step, dual, plan, shape, workload.classes, options)
    seconds = list(timed(step, asked.steps, device))
    held = sum(t.numel() * t.element_size() for t in dual.state_dict().values())
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    figures = torch.tensor([statistics.median(seconds), held, most], dtype=torch.float64)
    slowest, held, most = ranks.gather(figures).amax(0).tolist()
    return {"seconds": slowest, "held_bytes": int(held), "most_bytes": int(most) or None}


def stepping(
    make_step: type[GradientStep], dual: Dual, plan: Plan, shape, classes: int, options: Options
) -> Callable[[], None]:
    """One update on a fixed batch."""
    generator, number = torch.Generator().manual_seed(options.ranks.rank), last_step(plan)
    inputs = torch.randn(shape, generator=generator).to(options.device)
    targets = torch.randint(classes, (shape[0],), generator=generator).to(options.device)
    step = make_step(dual, make_optimizer(plan.train.optimizer, dual.trainable()), options)
    size, active, rate = plan.data.batch_size, open_losses(plan, number), plan.lr_at(number)
    batch = Batch(inputs, targets, number, 0, active, rate, size=size, total=len(targets))

    def update() -> None:
        step.gradients(batch)
        step.apply(rate)

    return update


def timed(step: Callable[[], None], count: int, device: torch.device) -> Iterator[float]:
    for number in range(count + 3):  # the first ones allocate
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            yield time.perf_counter() - began


if __name__ == "__main__":
    main()
