"""What a rule's granularity, its measure and its bounds make of its budget."""

import pytest
import torch
from support.resolving import MIX, TRAIN, Net, codes_of, plan_of, resolve
from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.group import budget_size, counted, members, num_units
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.schedule import ceilings_at, keeps_at
from dcil_dsl.words.granularity import Block, Filter, Pattern


def group_of(statements, model=None, **more):
    (group,) = plan_of(statements, model, **more).groups
    return group


def with_macs(statements):
    """The Plan for resolving.Net, whose layers are counted on one image of 10 x 10."""
    recipe = loads(f"language 1\n{statements}\n{MIX}\n{TRAIN}", "x.prune")
    traced = trace_model(Net(), (torch.zeros(1, 3, 10, 10),))
    return resolve_recipe(recipe, traced, 10, Diagnostics())


def test_filters_are_counted_as_filters_and_each_layer_keeps_one():
    group = group_of("prune Conv2d to global(30%, granularity=filter(ties=none))")
    assert (group.of, counted(group), budget_size(group)) == ("units", "filters", 7 * 8)
    assert num_units(group) == (8,) * 7
    assert group.costs == () and group.floors == (1,) * 7
    assert keeps_at(group, 0) == (39,)  # 0.7 * 56 = 39.2


def test_filters_can_be_counted_by_their_weights():
    group = group_of("prune Conv2d to global(30%, granularity=filter(ties=none), of=weights)")
    assert group.costs == (27, 72, 24, 72, 24, 18, 24)
    assert counted(group) == "weights"
    assert (budget_size(group), keeps_at(group, 0)) == (2088, (1461,))  # 0.7 * 2088 = 1461.6


def test_a_unit_costs_its_share_of_its_layers_arithmetic():
    (group,) = with_macs("prune Conv2d to global(50%, of=flops)").groups
    # The stem makes 8 x 8 positions, all others keep them.
    assert group.costs == (64,) * 7
    assert (counted(group), budget_size(group)) == ("multiply-accumulates", 64 * 2088)
    whole = "granularity=filter(ties=none)"
    (group,) = with_macs(f"prune Conv2d to global(50%, of=flops, {whole})").groups
    assert group.costs == tuple(64 * n for n in (27, 72, 24, 72, 24, 18, 24))
    (group,) = with_macs("prune Conv2d, Linear to global(50%, of=flops)").groups
    assert group.costs == (64,) * 7 + (1,)


def test_a_layer_alone_loses_the_same_share_in_every_measure():
    group = group_of("prune Conv2d to uniform(50%, granularity=channel)")
    assert (group.of, group.costs) == ("units", ())
    assert num_units(group) == (3, 8, 8, 8, 8, 8, 8)
    assert keeps_at(group, 0) == (1, 4, 4, 4, 4, 4, 4)


def test_the_target_the_rule_and_pruning_can_say_what_goes_together():
    filters = Filter(ties=None)
    assert group_of("prune Conv2d to uniform(50%, granularity=filter(ties=none))").unit == filters
    assert group_of("prune Conv2d to 50% { granularity = filter(ties = none) }").unit == filters
    text = "pruning { granularity = filter(ties = none) }\n"
    assert group_of(text + "prune Conv2d to 50%").unit == filters
    assert group_of(text + "prune Conv2d to uniform(50%, granularity=block(2, 1))").unit == Block(
        height=2, width=1
    )
    assert group_of(text + "prune Conv2d to 50% { granularity = weight }") == group_of(
        "prune Conv2d to 50%"
    ).model_copy(update={"rule": "x.prune:3"})


def test_a_pattern_has_its_own_granularity_whatever_pruning_says():
    text = "pruning { granularity = filter(ties = none) }\nprune Conv2d to 2:4\nkeep first Conv2d\n"
    group = group_of(text + 'keep "layer2.0.conv1"')
    assert group.unit == Pattern(n=2, m=4)
    assert group.sparsity == 0.5 and set(keeps_at(group, 0)) == {96, 288}
    assert group == group_of(text.replace("2:4", "nm(2, 4)") + 'keep "layer2.0.conv1"')


def test_every_layer_of_a_pattern_says_whether_the_hardware_runs_it():
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 24), nn.Linear(24, 16))
    group = group_of("prune Linear to 2:4", model)
    assert group.hardware == (
        "",
        "24 x 64: both sides must be multiples of 16",
        "16 x 24: both sides must be multiples of 16",
    )


def test_layers_that_hold_no_pattern_are_one_error_with_the_way_out():
    _, (error,) = resolve("prune Conv2d to 2:4")
    assert error.message == "`stem.weight` and 1 more do not fall into groups of 4 inputs"
    assert error.label == "3 inputs, not a multiple of 4"
    assert 'keep "stem", "layer2.0.conv1"' in error.help
    assert codes_of('prune Conv2d to 2:4\nkeep "stem", "layer2.0.conv1"') == []


def test_heads_are_one_unit_of_all_weights_that_make_them():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.MultiheadAttention(8, 4, batch_first=True)
            self.between = nn.Linear(8, 8)
            self.two = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.between(self.one(x, x, x, need_weights=False)[0])
            return self.two(x, x, x, need_weights=False)[0]

    group = group_of('prune "one", "two" to global(50%, granularity=head)', Attends())
    assert members(group) == [
        ("one.in_proj_weight", "one.out_proj.weight"),
        ("two.in_proj_weight", "two.out_proj.weight"),
    ]
    assert (group.spans, num_units(group), keeps_at(group, 0)) == ((2, 2), (4, 2), (3,))
    group = group_of('prune "one", "two" to global(50%, granularity=head, of=weights)', Attends())
    assert group.costs == (64, 128)  # 4 * 8 * 8 weights in four heads, in two
    _, (error,) = resolve('prune "one", "between" to 50% { granularity = head }', Attends())
    assert error.code == "E310" and error.message.startswith("`between.weight`")
    assert error.help == '`keep "between"` below this rule excludes it'


def test_heads_of_a_network_without_attention_are_reported_and_nothing_is_left_to_paste():
    _, (error,) = resolve("prune Conv2d to global(50%, granularity=head)")
    assert error.label == "the model has no known attention layer, so nothing in it has heads"
    assert error.message == "`stem.weight` and 6 more do not fall into heads" and not error.help


def test_of_many_layers_that_do_not_fit_a_whole_rule_names_one():
    _, (error,) = resolve("prune Conv2d, Linear to 50% { granularity = block(10, 1) }")
    assert error.message == (
        "`stem.weight` and 6 more do not fall into blocks of 10 outputs by 1 input"
    )
    assert error.help == (
        '`keep "stem"` below this rule excludes one of them; 6 more need the same, or narrow '
        "the rule"
    )


def test_a_plan_of_every_kind_is_the_same_after_json():
    plan = with_macs(
        "prune Conv2d to global(50%, of=flops, granularity=filter(ties=none)) { ceiling = 90% }\n"
        'prune "layer1.0" to 2:4\nprune Linear to uniform(50%, granularity=block(2, 4))'
    )
    assert Plan.from_json(plan.to_json()) == plan


# -- bounds ----------------------------------------------------------------------------------


def test_floors_and_ceilings_count_whole_units_to_the_safe_side():
    group = group_of(
        "prune Conv2d to global(50%, granularity=filter(ties=none)) { floor = 20% ceiling = 70% }"
    )
    assert group.floors == (2,) * 7  # 1.6 filters, rounded up
    assert group.ceilings == (5,) * 7  # 5.6 filters, rounded down
    assert group_of("prune Conv2d to global(50%) { ceiling = 60% }").ceilings[0] == 129


def test_a_ceiling_comes_down_with_the_ramp():
    group = group_of(
        "prune Conv2d to global(50%, granularity=filter(ties=none)) "
        "{ ceiling = 60% schedule = linear(0ep..5ep) }"
    )
    assert [ceilings_at(group, step)[0] for step in (0, 25, 50, 99)] == [8, 6, 4, 4]
    assert [keeps_at(group, step)[0] for step in (0, 25, 50)] == [56, 42, 28]


@pytest.mark.parametrize(
    "rule, message",
    [
        (
            "prune Conv2d to global(40%, granularity=filter(ties=none)) { ceiling = 60% }",
            "40% of 56 filters leaves 33 filters, the ceilings allow 28",
        ),
        (
            "prune Conv2d to global(95%, granularity=filter(ties=none))",
            "95% of 56 filters leaves 2 filters, the floors keep 7",
        ),
        (
            "prune Conv2d to 50% { floor = 60% }",
            "50% of `stem.weight` (216 weights) leaves 108 weights, the floors keep 130, likewise "
            "in 6 more layers",
        ),
        (
            "prune Linear to 2:4 { floor = 60% }",
            "50% of `head.weight` (80 weights) leaves 40 weights, the floors keep 48",
        ),
    ],
)
def test_what_the_bounds_do_not_allow_is_one_error_before_training(rule, message):
    _, (error,) = resolve(rule)
    assert (error.code, error.message) == ("E304", message)
