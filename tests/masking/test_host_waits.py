"""How often choosing masks makes the host wait for the device; fake tensors tell without one."""

from types import SimpleNamespace

import torch
from support.fake_gpu import elsewhere
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dcil_dsl.masking.score import (
    add_gradient_score,
    without_sign,
)
from dcil_dsl.masking.select import keep_top
from dcil_dsl.training.integrate import players
from dcil_dsl.words.optimizers import AdamW
from dcil_dsl.words.scores import uniform
from dcil_dsl.words.targets import Lamp
from dcil_dsl.words.tensors import colour
from dcil_dsl.words.units import Percent


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
    assert elsewhere(count_reads, [1, 1]) == elsewhere(count_reads, [1, 7]) == 1


def test_a_budget_of_one_layer_reads_nothing():
    assert elsewhere(count_reads, [4]) == 0


def count_reads_of_scores():
    with FakeTensorMode(), CountReads() as counted:
        w, lamp = torch.empty(5, 10, device="cuda"), Lamp(sparsity=Percent(0.5))
        add_gradient_score(w.clone(), w, w, "taylor", w.sum(), 0.1)
        for scores in (w, lamp.rescaled(w.square()), uniform((5, 10), 7, w.device)):
            without_sign(scores)
    return counted.reads


def test_scores_are_computed_without_reading_any():
    assert elsewhere(count_reads_of_scores) == 0


class CountCopies(TorchDispatchMode):
    """Counts what is copied from the host to a device; but from pinned memory, each is a wait."""

    copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {str(x.device) for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor)}
        on_device = isinstance(made, torch.Tensor) and made.is_cuda
        self.copies += on_device and given == {"cpu"}
        return made


def count_copies(work):
    with FakeTensorMode(), CountCopies() as counted:
        work(torch.empty(4, 3, 8, 8, device="cuda"))
    return counted.copies


def choose_players(w):
    parameter = torch.nn.Parameter(w)
    plan = SimpleNamespace(privates=(), paths=(), deploy="sparse")
    dual = SimpleNamespace(plan=plan, masks={}, trainable=lambda: [("w", parameter)])
    assert all(mask.is_cuda and mask.dtype is torch.bool for (mask,) in players(dual))


def turn_hue(w):
    colour.hue(w.to(torch.uint8), w[:, 0, 0, 0])


def sharpen(w):
    colour.sharpness(w.to(torch.uint8), w[:, 0, 0, 0])


def start_moments(w):
    assert all(entry.is_cuda for entry in AdamW(lr=0.1).entries(w).values())


def copy_a_number(w):
    torch.tensor(1.0, device=w.device)


def test_numbers_that_a_step_or_a_batch_needs_are_made_on_the_device():
    assert elsewhere(count_copies, copy_a_number) == 1
    for work in (choose_players, turn_hue, sharpen, start_moments):
        assert elsewhere(count_copies, work) == 0, work
