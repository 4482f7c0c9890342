"""What a rule asks beyond single weights, with weights in parts: the masks of one process.

Each run begins on two ranks, goes on in mid-epoch on four and ends on one, so that what lies beside
the weights - scores, reserves, thresholds, scales - is cut, saved and read at three sizes.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed.tensor
from support.parts_net import ALONE, BOTH, PartsNet, plan_of
from support.same_runs import assert_equal_runs
from support.tiny_ranks import on_ranks, rank_train, said
from support.tiny_run import NUM_CLASSES
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sharding.refusals import check_shardable
from dcil_dsl.extras.sharding.shards import shard
from dcil_dsl.extras.sharding.step import ShardedStep
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.machine import Options
from dcil_dsl.zoo.networks import SmallViT


class TiedNet(PartsNet):
    """A residual stream from conv1 on, which conv2 writes too."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = (x + self.conv2(x.relu())).relu()
        return self.fc(self.up(x).relu().mean((2, 3)))


def tiny_vit():
    return SmallViT(NUM_CLASSES, 1, image_size=8, width=8, num_blocks=1, num_heads=4)


THROUGH = ALONE.replace("VIEW", "masked")
RESERVED = THROUGH.replace("pruned by", "pruned by 0 *").replace("kept  ", "kept, reserve")
SOFT = ALONE.replace("VIEW", "soft_threshold()")
RULES = {  # the statements, the mix, the network; a rule of its own for `up` tells more at a time
    "filters, channels": (
        'prune "conv?" to global(50%, granularity=filter(ties=none)) { score = l2 }\n'
        'prune "up" to 50% { granularity = channel }',
        BOTH,
    ),
    "heads, blocks": (
        'prune "blocks.*.attention" to global(50%, granularity=head)\n'
        'prune Linear in "blocks.*.mlp" to uniform(75%, granularity=block(4, 4))',
        THROUGH,
        tiny_vit,
    ),
    "tied filters": (
        "prune convs to global(40%, granularity=filter) { score = l2 }",
        BOTH,
        TiedNet,
    ),
    "patterns, lamp": (
        'prune "conv1" to lamp(80%)\n'
        'prune "conv2" to 2:4 { schedule = once(at=2 steps) }\n'
        'prune "up" to 1:2 { schedule = once(at=2 steps) }',
        THROUGH,
    ),
    "lamp of filters, averaged sizes": (
        'prune "conv?" to lamp(50%) { granularity = filter(ties = none) }\n'
        'prune "up" to uniform(70%) { score = magnitude(average=0.5) }',
        THROUGH,
    ),
    "movement, gradients": (
        'prune "conv?" to global(80%) { score = movement }\n'
        'prune "up" to uniform(70%) { score = gradient }',
        BOTH,
    ),
    "taylor of filters, chance": (
        'prune "conv?" to global(50%, granularity=filter(ties=none)) '
        "{ score = taylor(average=0.5) }\n"
        'prune "up" to 50% { score = random }',
        THROUGH,
    ),
    "rigl": (
        "prune convs to erk(60%) { schedule = constant()  forget = true  "
        "regrow = gradient(30%, stop=75% run) }",
        THROUGH,
    ),
    "set, lamp": (
        'prune "conv?" to global(60%) { schedule = constant()  '
        "regrow = random(30%, stop=75% run) }\n"
        'prune "up" to lamp(70%) { score = l2 }',
        THROUGH,
    ),
    "top-kast": (
        "prune convs to 70% { reserve = 10%  penalty = [square(kept, 1e-2), norm(reserve, 1e-2)] }",
        RESERVED,
    ),
    "st-3, of roots too": (
        'prune "conv?" to global(70%)\nprune "up" to 70% { param = power(alpha=2) }',
        SOFT,
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs of each rule: on one process, and on two, four and one."""
    folder = tmp_path_factory.mktemp("rules")
    cases = {}
    for name, (statements, mix, *net) in RULES.items():
        net = net[0] if net else PartsNet
        cases[name] = plan_of(statements, mix, net), net

    def train(where, **options):
        def work(ranks):
            for name, (plan, net) in cases.items():
                rank_train(folder / where / name, ranks, plan, net, evaluate_every=2, **options)

        return work

    for where in ("alone", "parts"):
        (folder / where).mkdir()
    for count, stop in ((2, 4), (4, 7)):
        status = on_ranks(folder, count, train("parts", shard=True, max_steps=stop))
        assert status == [0] * count, "".join(said(folder, rank) for rank in range(count))
    train("parts")(Ranks())
    train("alone")(Ranks())
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_parts_have_the_masks_and_losses_of_one_process_at_every_number_of_ranks(runs, rule):
    assert_equal_runs(runs / "parts" / rule, runs / "alone" / rule)


def test_what_lies_next_to_a_weight_is_cut_as_it_is(tmp_path):
    def work(ranks):
        for name in ("movement, gradients", "top-kast", "st-3, of roots too"):
            dual = compile_plan(plan_of(*RULES[name]), PartsNet())
            kinds = {key.rpartition("_")[2] for key in dual.state_dict()} & {
                "mask",
                "score",
                "reserve",
                "scale",
                "threshold",
            }
            assert len(kinds) > 1
            shards = shard(dual, ranks, torch.device("cpu"))
            for parameter in dual.masks:
                for kind in kinds - {"threshold"}:
                    beside = dual.get_buffer(f"{parameter}_{kind}")
                    if kind == "scale" and parameter == "up.weight":
                        assert beside.shape == (1, 6, 1, 1)  # its filters lie on all ranks
                        assert shards.of(f"{parameter}_{kind}") is None
                    else:
                        assert len(beside) == 4 == len(dual.get_parameter(parameter))
                        assert shards.of(f"{parameter}_{kind}").shape[0] == 8

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)


class TwiceNet(nn.Module):
    """A module under two names, and a buffer of the network's own that is called as a mask is."""

    def __init__(self):
        super().__init__()
        self.conv = self.again = nn.Conv2d(1, 1, 3, padding=1)
        self.fc = nn.Linear(64, 32)
        self.fc.register_buffer("weight_mask", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.again(self.conv(x)).flatten(1))


def test_a_mask_is_cut_under_both_names_of_its_module_and_what_is_only_called_so_is_whole(tmp_path):
    def work(ranks):
        dual = compile_plan(plan_of('prune "conv" to 50%', THROUGH, TwiceNet), TwiceNet())
        shards = shard(dual, ranks, torch.device("cpu"))
        for name in ("conv.weight_mask", "again.weight_mask", "fc.weight"):
            layout = shards.of(name)
            assert len(layout.whole_bits(dual.state_dict()[name])) == layout.shape[0], name
        assert shards.of("again.weight_mask") is shards.of("conv.weight_mask")
        assert shards.of("fc.weight_mask") is None and len(dual.get_buffer("fc.weight_mask")) == 3

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)


def test_a_gradient_that_is_infinite_on_one_rank_alone_is_skipped_by_all(tmp_path):
    def work(ranks):
        dual = compile_plan(plan_of(*RULES["filters, channels"]), PartsNet())
        shard(dual, ranks, torch.device("cpu"))
        parameter = dual.get_parameter("conv2.weight")
        before = parameter.detach().clone()
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        options = Options(ranks=ranks, precision="fp16", shard=True)
        scaler = ShardedStep(dual, optimizer, options).scaler
        scale = float(scaler.scale(torch.ones(())))
        parameter.grad = torch.ones_like(parameter)
        if ranks.rank == 1:
            parameter.grad[0, 0, 0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(parameter, before)
        assert scaler.get_scale() == scale / 2

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)


def test_half_precision_in_parts_trains_what_one_process_trains(tmp_path):
    plan, found = plan_of(*RULES["taylor of filters, chance"]), {}

    def train(ranks, **options):
        folder = tmp_path / f"of {ranks.count}"
        result, dual = rank_train(
            folder, ranks, plan, PartsNet, max_steps=6, precision="fp16", **options
        )
        found["weights"] = dual.state_dict()
        return result

    train(Ranks())

    def work(ranks):
        train(ranks, shard=True)
        if ranks.is_first:
            torch.save(found["weights"], tmp_path / "weights.pt")

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    parts = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, tensor in found["weights"].items():
        torch.testing.assert_close(parts[name], tensor, rtol=0.05, atol=0.01, msg=name)


@pytest.mark.parametrize(
    "statements, mix, message",
    [
        (
            'prune "up" to 2:4 { schedule = once(at=2 steps) }',
            BOTH,
            "keeps 2 of every 4 rows of `up.weight`, and 4 processes cut its 8 rows after each 2",
        ),
        (
            'prune "conv2" to global(50%, granularity=filter(ties=none))',
            BOTH.replace("= masked", "= masked { compute = kept }"),
            "`compute = kept` of path `sparse` reads whole masks",
        ),
    ],
)
def test_what_would_need_more_than_rows_and_sums_is_refused_with_the_reason(
    statements, mix, message
):
    with pytest.raises(InputError, match=message):
        check_shardable(plan_of(statements, mix), Ranks(0, 4))
