"""How often choosing masks makes the host wait for the device; fake tensors tell without one."""

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcil_dsl.masking.select import keep_top


class CountReads(TorchDispatchMode):
    """Counts the numbers that the host reads, and answers each with one."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        try:
            return function(*args, **(kwargs or {}))
        except DataDependentOutputException:
            self.reads += 1
            return 1


def count_reads(floors):
    with FakeTensorMode(), CountReads() as counted:
        scores = [torch.empty(100, device="cuda"), torch.empty(5, 10, device="cuda")]
        keep_top(scores[: len(floors)], 20, floors)
    return counted.reads


def test_a_budget_of_several_layers_reads_one_answer():
    assert count_reads([1, 1]) == count_reads([1, 7]) == 1


def test_a_budget_of_one_layer_reads_nothing():
    assert count_reads([4]) == 0
