"""How often choosing masks makes the host wait for the device; fake tensors tell without one.

They are made in a process of their own: after a fake tensor on a GPU, autograd starts threads for
that GPU with the next backward pass, and a process that has them cannot fork ranks any more.
"""

import multiprocessing

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcil_dsl.masking.score import (
    add_gradient_score,
    lamp_scores,
    random_scores,
    without_sign,
)
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


def elsewhere(function, *arguments):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def count_reads(floors):
    with FakeTensorMode(), CountReads() as counted:
        scores = [torch.empty(100, device="cuda"), torch.empty(5, 10, device="cuda")]
        keep_top(scores[: len(floors)], 20, floors)
    return counted.reads


def test_a_budget_of_several_layers_reads_one_answer():
    assert elsewhere(count_reads, [1, 1]) == elsewhere(count_reads, [1, 7]) == 1


def test_a_budget_of_one_layer_reads_nothing():
    assert elsewhere(count_reads, [4]) == 0


def count_reads_of_scores():
    with FakeTensorMode(), CountReads() as counted:
        w = torch.empty(5, 10, device="cuda")
        add_gradient_score(w.clone(), w, w, "taylor", w.sum(), 0.1)
        for scores in (w, lamp_scores(w.square()), random_scores((5, 10), 7, w.device)):
            without_sign(scores)
    return counted.reads


def test_scores_are_computed_without_reading_any():
    assert elsewhere(count_reads_of_scores) == 0
