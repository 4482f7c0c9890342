"""Paths that are run one after the other: the usual step's numbers, one path's activations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))

from test_distributed import assert_equal_runs
from test_resume import assert_same
from test_segments import PLANS, Counting, InPlace, Whole
from tiny_ranks import on_ranks, rank_train, said
from tiny_run import TinyNet, cross_entropy, kl, tiny_plan, tiny_train

from dcil_dsl.compiler import compile_plan
from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training import Options
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.forward import make_forward
from dcil_dsl.training.in_turn import InTurn, Turn, order_turns
from dcil_dsl.words.integrators import Heun
from dcil_dsl.words.scores import Taylor

BOTH = [cross_entropy("sparse"), cross_entropy("dense", 0.5)]
LOSSES = {
    "no KL": BOTH,
    "the first path learns from the second": [*BOTH, kl("sparse", "dense")],
    "the second from the first": [*BOTH, kl("dense", "sparse", coefficient=0.3)],
    "both ways": [*BOTH, kl("sparse", "dense"), kl("dense", "sparse", coefficient=0.3)],
    "a teacher that does not learn": [BOTH[0], kl("sparse", "dense")],
}
ALONE = dict(privates=tuple(p.Private(module=name) for name in ("bn1", "bn2", "drop", "fc")))


def made(net, plan):
    torch.manual_seed(0)
    dual = compile_plan(plan, net()).double()
    dual.refresh(8)
    dual.begin_step(8)
    return dual


def two_batches(dual, learn):
    """(losses, sums, gradients, state, the next random number) after two batches of one step."""
    generator = torch.Generator().manual_seed(2)
    active, told = tuple(range(len(dual.plan.losses))), []
    torch.manual_seed(1)
    for _ in range(2):
        images = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator)
        labels = torch.randint(0, 6, (8,), generator=generator)
        loss, sums = learn(images, labels, active, lambda total: (3 * total).backward())
        told += [loss.detach(), sums]
    gradients = {name: q.grad for name, q in dual.named_parameters()}
    return told, gradients, dual.state_dict(), torch.rand(1)


def usually(dual):
    forward = make_forward(dual, Options())

    def learn(images, labels, active, backward):
        loss, sums = forward(images, labels, active)
        backward(loss)
        return loss, sums

    return two_batches(dual, learn)


def same(net, plan) -> None:
    usual, turned = made(net, plan), made(net, plan)
    torch.testing.assert_close(
        two_batches(turned, InTurn(turned, Options()).learn), usually(usual), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("net", [TinyNet, InPlace, Counting])
def test_losses_gradients_statistics_and_draws_are_those_of_the_usual_step(net, losses):
    scores = dict(group={"score": Taylor(path="sparse", average=0.9)})
    same(net, tiny_plan(losses=tuple(LOSSES[losses]), **scores))


@pytest.mark.parametrize("losses", ["the first path learns from the second", "both ways"])
@pytest.mark.parametrize("plan", PLANS)
def test_they_are_under_every_kind_of_plan(plan, losses):
    same(TinyNet, tiny_plan(losses=tuple(LOSSES[losses]), **PLANS[plan]))


def test_a_module_that_stays_whole_runs_once_a_path():
    same(Whole, tiny_plan(losses=tuple(LOSSES["the second from the first"])))
    with pytest.raises(InputError, match="would run path `sparse` twice a step"):
        InTurn(made(Whole, tiny_plan(losses=tuple(LOSSES["both ways"]))), Options())


@pytest.mark.parametrize(
    "teachers, is_ordered, turns",
    [
        ({"a": set(), "b": {"a"}}, True, [("a", True), ("b", True)]),
        ({"a": {"b"}, "b": set()}, False, [("b", True), ("a", True)]),
        ({"a": {"b"}, "b": set()}, True, [("a", False), ("b", True), ("a", True, True)]),
        ({"a": {"b"}, "b": {"a"}}, False, [("b", False), ("a", True), ("b", True, True)]),
        ({"a": {"b"}}, False, [("b", False), ("a", True)]),
        ({"a": {"b"}}, True, [("a", False), ("b", False), ("a", True, True)]),
    ],
)
def test_as_few_forwards_as_the_teachers_allow(teachers, is_ordered, turns):
    costs = {"a": 1.0, "b": 0.25}  # of two that teach each other the cheaper one runs twice
    assert order_turns(costs, teachers, is_ordered) == tuple(Turn(*turn) for turn in turns)


def test_only_one_paths_activations_are_kept_at_a_time():
    def most_kept(dual, learn) -> int:
        kept, most = 0, 0

        class Kept:
            def __init__(self, tensor):
                nonlocal kept, most
                self.tensor, self.size = tensor, tensor.numel()
                kept += self.size
                most = max(most, kept)

            def __del__(self):
                nonlocal kept
                kept -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda held: held.tensor):
            learn(dual)
        return most

    plan = tiny_plan(**ALONE)
    usual = most_kept(made(TinyNet, plan), usually)
    turned = most_kept(
        made(TinyNet, plan), lambda dual: two_batches(dual, InTurn(dual, Options()).learn)
    )
    assert turned < 0.6 * usual


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_ends_as_the_usual_one(tmp_path, precision):
    usual, dual, _ = tiny_train(tmp_path / "usual", precision=precision)
    turned, other, _ = tiny_train(tmp_path / "turned", precision=precision, in_turn=True)
    far = dict(rtol=1e-3, atol=1e-4) if precision == "fp32" else dict(rtol=0.1, atol=0.02)
    torch.testing.assert_close(other.state_dict(), dual.state_dict(), **far)
    tiny_train(tmp_path / "again", precision=precision, in_turn=True, max_steps=8)
    tiny_train(tmp_path / "again", precision=precision, in_turn=True, resume=True)
    assert_same(tmp_path / "turned", tmp_path / "again")


def test_a_path_that_runs_alone_has_its_turn(tmp_path):
    """Three steps of the dense path, then both, then the sparse one."""
    shares = dict(kept=1.0, rest=1.0), dict(pruned=1.0, rest=1.0)
    alone = (p.Shares(), p.Shares(kept=1.0, pruned=1.0, rest=1.0))
    phases = (
        p.Phase(window=p.Window(stop=3), paths=("dense",), shares=alone),
        p.Phase(
            window=p.Window(start=3, stop=6), paths=("sparse", "dense"),
            shares=tuple(p.Shares(**share) for share in shares),
        ),
        p.Phase(window=p.Window(start=6), paths=("sparse",), shares=alone[::-1]),
    )  # fmt: skip
    losses = tuple(
        loss.model_copy(update={"window": window})
        for loss, window in (
            (cross_entropy("sparse"), p.Window(start=3)),
            (cross_entropy("dense"), p.Window(stop=6)),
        )
    )  # fmt: skip
    plan = tiny_plan(phases=phases, losses=losses)
    _, dual, _ = tiny_train(tmp_path / "usual", plan, max_steps=9)
    _, other, _ = tiny_train(tmp_path / "turned", plan, max_steps=9, in_turn=True)
    torch.testing.assert_close(other.state_dict(), dual.state_dict(), rtol=1e-4, atol=1e-5)


def test_ranks_take_the_mean_of_their_gradients(tmp_path):
    def both(ranks):
        rank_train(tmp_path / "usual", ranks, max_steps=8)
        rank_train(tmp_path / "turned", ranks, max_steps=8, in_turn=True)

    assert on_ranks(tmp_path, 2, both) == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "turned", tmp_path / "usual")


def test_compiled_parts_are_the_same_and_moving_masks_compile_nothing(tmp_path, graphs_compiled):
    _, compiled = rank_train(tmp_path / "compiled", Ranks(), in_turn=True, compile=True)
    _, plain = rank_train(tmp_path / "plain", Ranks(), in_turn=True)
    assert len(graphs_compiled) == 4  # what is shared, two paths, one ahead of its turn
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_random_numbers_that_have_to_be_drawn_twice_are_not_compiled():
    with pytest.raises(InputError, match="may draw other random numbers the second time"):
        InTurn(made(TinyNet, tiny_plan()), Options(compile=True))


def test_steps_that_are_made_of_several_gradients_are_not_taken_in_turn():
    with pytest.raises(InputError, match="does not go with `integrator`"):
        InTurn(made(TinyNet, tiny_plan({"integrator": Heun()})), Options())
