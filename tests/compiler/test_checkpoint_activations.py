"""Activations that are computed again: the same numbers, fewer of them kept."""

from __future__ import annotations

import pytest
import torch
from support.same_runs import assert_same
from support.tiny_run import TinyNet, tiny_plan, tiny_train
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.checkpoint_activations import Segmented, recompute_activations
from dcil_dsl.plan import plan as p
from dcil_dsl.words.scores import Taylor


class InPlace(TinyNet):
    """Additions and activations in place, twice over the same memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        y = x.sin()
        y.mul_(2)
        y += x
        y.relu_()
        z = self.bn2(self.conv2(y))
        z.mul_(0.5)
        z = nn.functional.relu(z, inplace=True)
        return self.fc(self.drop(z.mean((2, 3))))


class Counting(TinyNet):
    """Writes to a buffer of its own, and reads it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("running", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        self.seen.add_(1)
        self.running.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
        x = nn.functional.batch_norm(x, self.bn1.running_mean, self.bn1.running_var, training=True)
        x = self.bn2(self.conv2(x.relu())) + self.seen
        return self.fc(x.relu().mean((2, 3)))


class Untraceable(nn.Module):
    """Decides by its input, and counts in Python how often it was run."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * 2 if x.sum() > 0 else x - 1


class Whole(TinyNet):
    def __init__(self):
        super().__init__()
        self.odd = Untraceable()

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.bn1(self.conv1(x)).relu())
        return self.fc(self.drop(self.bn2(self.conv2(x)).relu().mean((2, 3))))


def made(net, plan):
    torch.manual_seed(0)
    dual = compile_plan(plan, net()).double()
    dual.refresh(8)
    return dual


def steps(dual, num: int = 2):
    """The outputs of the last of some steps and the sum of the gradients of all."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator)
    for step in range(8, 8 + num):
        torch.manual_seed(step)
        dual.begin_step(step)
        outputs = dual(images)
        loss = (outputs["sparse"] - outputs["dense"].softmax(1)).square().sum()
        (loss + outputs["dense"].square().sum()).backward()
    return outputs, {name: q.grad for name, q in dual.named_parameters()}


def bytes_kept(dual) -> int:
    """For the way back, each tensor as often as it is kept."""
    kept = []
    dual.begin_step(0)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel() * t.element_size()), lambda nothing: nothing
    ):
        dual(torch.randn(8, 1, 8, 8, dtype=torch.float64))
    return sum(kept)


PLANS = {
    "scores": dict(group={"score": Taylor(path="sparse", average=0.9)}),
    "shared randomness": dict(
        paths=(
            p.Path(name="sparse", view="masked"),
            p.Path(name="dense", view="full", random="shared"),
        )
    ),
    "shared norms": dict(privates=(p.Private(module="fc"),)),
    "part of the batch": dict(
        paths=(
            p.Path(name="sparse", view="masked"),
            p.Path(name="dense", view="full", size=0.5),
        )
    ),
}


@pytest.mark.parametrize("num", [1, 2, 3, 5, 100, None])
@pytest.mark.parametrize("net", [TinyNet, InPlace, Counting, Whole])
def test_outputs_gradients_and_buffers_are_those_of_one_pass(net, num):
    same(net, tiny_plan(**PLANS["scores"]), num)


@pytest.mark.parametrize("plan", PLANS)
def test_they_are_under_every_kind_of_plan(plan):
    same(TinyNet, tiny_plan(**PLANS[plan]), 4)


def same(net, plan, num) -> None:
    plain, cut = made(net, plan), recompute_activations(made(net, plan), num)
    outputs, gradients = steps(plain)
    again, others = steps(cut)
    assert [path for path in outputs if not torch.equal(outputs[path], again[path])] == []
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-12, atol=1e-14, msg=name)
    state, other = plain.state_dict(), cut.state_dict()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []
    if net is Whole:
        assert plain.odd.runs == cut.odd.runs


def test_activation_checkpointing_keeps_fewer_bytes_for_the_backward_pass():
    class Deep(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(x))
            for _ in range(20):
                x = x.sin().exp()
            return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))

    plan = tiny_plan()
    kept = bytes_kept(recompute_activations(made(Deep, plan)))
    assert kept < 0.4 * bytes_kept(made(Deep, plan))


def test_evaluation_and_the_graph_are_as_they_were():
    dual = recompute_activations(made(TinyNet, tiny_plan()))
    assert {key: isinstance(f, Segmented) for key, f in dual.forwards.items()} == {
        (True, 0): True,
        (False, 0): False,
    }
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    plain = made(TinyNet, tiny_plan()).eval()
    assert torch.equal(dual.eval()(images)["sparse"], plain(images)["sparse"])
    assert dual.code == plain.code


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_has_the_same_bits(tmp_path, precision):
    tiny_train(tmp_path / "plain", precision=precision)
    again = dict(precision=precision, checkpoint_activations=True)
    tiny_train(tmp_path / "cut", **again, max_steps=8)
    tiny_train(tmp_path / "cut", **again, resume=True)
    assert_same(tmp_path / "plain", tmp_path / "cut")
