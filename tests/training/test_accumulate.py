"""Several batches make one step: the step of one batch as large."""

from __future__ import annotations

import pytest
import torch
from tiny_ranks import PlainNet, plain_plan
from tiny_run import TinyData

from dcil_dsl.compiler import compile_plan
from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training.accumulate import part_of_step
from dcil_dsl.training.run import create_run
from dcil_dsl.training.trainer import train


def trained(folder, plan):
    torch.manual_seed(0)
    dual = compile_plan(plan, PlainNet())
    result = train(dual, Batches(plan), TinyData(31, seed=1), create_run(plan, "", "", folder))
    return result, dual.state_dict()


class Batches(TinyData):
    """37 examples in the order of TinyData, in batches of the plan's size."""

    def __init__(self, plan):
        super().__init__()
        self.size = plan.data.batch_size
        self.num_batches = -(-self.num_examples // self.size)

    def epoch(self, epoch, start=0):
        order = torch.randperm(self.num_examples, generator=torch.Generator().manual_seed(epoch))
        for indices in order.split(self.size)[start:]:
            yield self.images[indices], self.labels[indices]


def plan_of(batch_size, accumulate):
    return plain_plan(
        train={"accumulate": accumulate},
        data=p.Data(batch_size=batch_size, channels=1),
        steps_per_epoch=3,
        num_steps=12,
    )


def test_two_batches_of_eight_are_one_of_sixteen_the_short_last_step_included(tmp_path):
    one, weights = trained(tmp_path / "one", plan_of(16, 1))
    two, others = trained(tmp_path / "two", plan_of(8, 2))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-5, msg=name)
    assert (one.step, one.epoch, one.num_kept) == (two.step, two.epoch, two.num_kept)


def test_the_parts_of_an_epoch_add_up_to_its_examples():
    plan = plan_of(8, 2)
    parts = [part_of_step(plan, Batches(plan), batch) for batch in range(5)]
    assert [part.size for part in parts] == [8, 8, 8, 8, 5]
    assert [part.total for part in parts] == [16, 16, 16, 16, 5]
    assert [part.is_first for part in parts] == [True, False, True, False, True]
    assert [part.is_last for part in parts] == [False, True, False, True, True]


def test_a_plan_made_for_batches_and_not_for_steps_is_refused(tmp_path):
    plan = plan_of(8, 2).model_copy(update={"steps_per_epoch": 5})
    with pytest.raises(InputError, match="has 3 steps, and the plan was made for 5"):
        trained(tmp_path / "run", plan)
