"""ERK: the densities of layers by their shapes, and the budget that they add up to."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.resolving import codes_of, plan_of, resolve
from torchvision.models import resnet50

from dcil_dsl.plan.allocate import share_out
from dcil_dsl.plan.schedule import keeps_at, sparsity_at, whole_units
from dcil_dsl.words.targets import Erk
from dcil_dsl.words.units import Percent

SIZES = (216, 576, 192, 576, 192, 144, 192)  # the convolutions of resolving.Net


def erk(power=1.0):
    return Erk(sparsity=Percent(0.9), power=power)


def densities(shapes, sparsity, power=1.0, floors=None):
    sizes = [math.prod(shape) for shape in shapes]
    weights = erk(power).proportions([[shape] for shape in shapes])
    budget = sum(sizes) * (1 - sparsity)
    return share_out(weights, sizes, budget, floors or [0] * len(sizes), sizes)


def test_densities_are_in_proportion_to_sum_over_product():
    """(10 + 10) / 100 and (20 + 20) / 400: twice as dense, and 45 of 500 weights in all."""
    assert densities([(10, 10), (20, 20)], 0.91) == pytest.approx([0.15, 0.075])


def test_a_layer_that_would_exceed_one_is_whole_and_the_others_share_the_rest():
    """124 = eps (4 * 4/4 + 100 * 20/100 + 400 * 40/400) has eps 1.94, which is more than all of
    the first; 124 - 4 = eps (20 + 40) has eps 2."""
    small, middle, large = densities([(2, 2), (10, 10), (20, 20)], 1 - 124 / 504)
    assert small == 1
    assert (middle, large) == pytest.approx((0.4, 0.2))


def test_the_dimensions_of_a_kernel_count():
    """(8 + 8 + 3 + 3) / 576 against (8 + 8) / 64."""
    assert erk().proportions([[(8, 8, 3, 3)], [(8, 8)]]) == pytest.approx([22 / 576, 1 / 4])


def test_of_weights_that_are_pruned_as_one_sums_and_products_add_up():
    assert erk().proportions([[(6, 2), (2, 2)]]) == pytest.approx([(8 + 4) / (12 + 4)])


def test_power_zero_is_uniform():
    assert densities([(10, 10), (20, 20)], 0.7, power=0) == pytest.approx([0.3, 0.3])


def test_a_floor_that_binds_is_taken_from_the_others():
    first, second = densities([(10, 10), (20, 20)], 0.91, floors=[0, 40])
    assert (first, second) == pytest.approx((0.05, 0.1))


def test_resnet50_at_90_percent_has_the_published_densities():
    """The column ERK of budgets/SparsityDistributions_90_ResNet50.csv in
    github.com/RAIVNLab/STR: whole percents, by layer in the order of the model. Only the values
    that occur are written here, each with its layers."""
    published = {
        "conv1": 58,
        "layer1.0.conv1": 0,
        "layer1.0.conv2": 82,
        "layer1.0.conv3": 4,
        "layer1.0.downsample.0": 4,
        "layer2.0.conv1": 43,
        "layer2.0.conv2": 91,
        "layer2.0.conv3": 52,
        "layer2.0.downsample.0": 71,
        "layer3.0.conv1": 71,
        "layer3.0.conv2": 96,
        "layer3.0.conv3": 76,
        "layer3.0.downsample.0": 86,
        "layer4.0.conv1": 86,
        "layer4.0.conv2": 98,
        "layer4.0.conv3": 88,
        "layer4.0.downsample.0": 93,
        "fc": 93,
    }
    weights = {n: tuple(p.shape) for n, p in resnet50().named_parameters() if p.dim() > 1}
    kept = dict(zip(weights, densities(weights.values(), 0.9), strict=True))
    ours = {name: round(100 * (1 - kept[f"{name}.weight"])) for name in published}
    assert ours == published


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.floats(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_the_budget_is_kept_exactly_and_no_layer_leaves_its_bounds(shapes, sparsity, power):
    sizes = [math.prod(shape) for shape in shapes]
    found = densities(shapes, sparsity, power)
    assert all(0 <= density <= 1 for density in found)
    budget = sum(sizes) * (1 - sparsity)
    assert math.fsum(n * d for n, d in zip(sizes, found, strict=True)) == pytest.approx(budget)


# -- in a plan ------------------------------------------------------------------------------------


def group_of(rule):
    (group,) = plan_of(rule).groups
    return group


def test_a_plan_has_a_target_for_each_layer_and_one_for_all():
    group = group_of("prune Conv2d to erk(80%)")
    assert (group.target.called, group.one_budget, group.sparsity) == ("erk", False, 0.8)
    assert len(group.targets) == 7
    pruned = sum(n * t for n, t in zip(SIZES, group.targets, strict=True))
    assert pruned == pytest.approx(0.8 * sum(SIZES))


def test_at_every_step_the_layers_together_are_what_the_schedule_asks():
    """Never less sparse, and at most one weight a layer more."""
    group = group_of("prune Conv2d to erk(80%) { schedule = cubic(0ep..5ep, initial=5%) }")
    for step in range(0, 100, 7):
        asked = whole_units(sum(SIZES) * (1 - sparsity_at(group, step)))
        assert asked - 7 < sum(keeps_at(group, step)) <= asked


def test_on_the_way_each_layer_has_come_as_far_as_the_whole():
    group = group_of("prune Conv2d to erk(80%) { schedule = linear(0 steps..40 steps) }")
    halfway = zip(SIZES, keeps_at(group, 20), group.targets, strict=True)
    assert all(abs(n - keep - n * target / 2) <= 1 for n, keep, target in halfway)


def test_the_floors_of_erk_are_filled_from_the_budget_of_all():
    group = group_of("prune Conv2d to erk(90%) { floor = 9% }")
    keeps = keeps_at(group, 99)
    assert all(keep >= math.ceil(0.09 * n) for keep, n in zip(keeps, SIZES, strict=True))
    assert sum(keeps) <= 0.1 * sum(SIZES)


def test_floors_beyond_the_budget_of_all_are_an_error():
    _, (error,) = resolve("prune Conv2d to erk(95%) { floor = 9% }")
    assert (error.code, error.message) == (
        "E304",
        "95% of 2,088 weights leaves 104 weights, the floors keep 191",
    )


def test_erk_shares_out_filters_by_the_shape_of_their_layer():
    group = group_of("prune Conv2d to erk(50%) { granularity = filter(ties = none) }")
    assert group.of == "units" and sum(keeps_at(group, 99)) <= 28  # of 56 filters
    assert codes_of("prune Conv2d to erk(50%) { granularity = filter(ties = none) }") == []


def test_a_schedule_of_nothing_keeps_everything():
    group = group_of("prune Conv2d to erk(0%)")
    assert keeps_at(group, 99) == SIZES


# -- scores in a plan ------------------------------------------------------------------------------


def test_the_deployed_path_is_scored_unless_another_is_named():
    (group,) = plan_of("prune Conv2d to 90% { score = taylor }").groups
    assert (group.score.called, group.score.path, group.score.average) == ("taylor", "sparse", None)
    (group,) = plan_of("prune Conv2d to 90% { score = movement(dense, average=0.9) }").groups
    assert (group.score.path, group.score.average) == ("dense", 0.9)


def test_lamp_is_one_budget_over_squares():
    group = group_of("prune Conv2d to lamp(90%)")
    assert (group.target.called, group.one_budget) == ("lamp", True)
    assert (group.score.called, group.score.has_state) == ("l2", False)
