"""Which batches make a step.

In:   a plan, the loader's counts, the number of a batch in its epoch.
Out:  Part: the batch's place in its step, and how many examples both have.
Not:  no data.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.plan.plan import Plan


@dataclass(frozen=True)
class Part:
    """One batch of a step. size and total are its and the step's examples, over all ranks."""

    is_first: bool
    is_last: bool
    size: int
    total: int


def part_of_step(plan: Plan, loader: BatchLoader, batch: int) -> Part:
    """Steps are `accumulate` batches each, from the first of an epoch; its last may have fewer.

        total = sum of the sizes of the step's batches

    The step's loss is the mean over `total` examples, however they are parted.
    """
    size, num = plan.data.batch_size, loader.num_examples
    start = batch - batch % plan.train.accumulate
    stop = min(start + plan.train.accumulate, loader.num_batches)
    return Part(
        is_first=batch == start,
        is_last=batch == stop - 1,
        size=min(size, num - batch * size),
        total=min(stop * size, num) - start * size,
    )
