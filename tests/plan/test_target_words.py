"""Targets by density, by count, by list and by table: what each layer keeps."""

import json

import pytest
from support.resolving import MIX, TRAIN, Net, codes_of, plan_of

import dcil_dsl as dcil
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import keeps_at, sparsity_at

CONVS = "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"


def group_of(target, layers='"layer1.**"', more=""):
    (group,) = plan_of(f"prune {layers} to {target} {{ {more} }}").groups
    return group


def test_a_density_is_the_other_side_of_a_sparsity():
    one, other = group_of("density(10%)"), group_of("90%")
    assert keeps_at(one, 0) == keeps_at(other, 0) and one.sparsity == pytest.approx(0.9)


@pytest.mark.parametrize("target", ["at_most(weights=100)", "at_most(bytes=400)"])
def test_at_most_leaves_exactly_as_many_weights_in_all_layers_together(target):
    group = group_of(target)
    assert group.one_budget and keeps_at(group, 99) == (100,)
    assert sum(group.num_weights) == 1536 and group.sparsity == 1 - 100 / 1536
    assert Plan.from_json(plan_of(f'prune "layer1.**" to {target}').to_json()).groups == (
        group.model_copy(update={"rule": "x.prune:2"}),
    )


def test_at_most_ramps_to_its_count():
    group = group_of("at_most(weights=100)", more="schedule = linear(0ep..5ep)")
    assert sparsity_at(group, 25) == pytest.approx(group.sparsity / 2)


def test_a_list_gives_each_layer_its_own_sparsity():
    group = group_of("each([50%, 25%, 75%, 0%])")
    kept = [keep / size for keep, size in zip(keeps_at(group, 0), group.num_weights)]
    assert kept == [0.5, 0.75, 0.25, 1.0]
    sizes = group.num_weights
    pruned = sum(n * s for n, s in zip(sizes, (0.5, 0.25, 0.75, 0.0)))
    assert group.sparsity == pytest.approx(pruned / sum(sizes))


def test_a_list_of_filters_counts_filters():
    rule = "each([50%, 25%, 75%, 0%])"
    group = group_of(rule, more="granularity = filter(ties = none)")
    assert keeps_at(group, 0) == (4, 6, 2, 8)


def table_of(tmp_path, table, target='table("t.json")'):
    (tmp_path / "t.json").write_text(table if isinstance(table, str) else json.dumps(table))
    text = f'language 1\nprune "layer1.**" to {target}\n{MIX}\n{TRAIN}'
    (tmp_path / "x.prune").write_text(text)
    return dcil.resolve(dcil.load(tmp_path / "x.prune"), Net(), steps_per_epoch=10)


def test_a_table_next_to_the_recipe_gives_each_layer_its_sparsity(tmp_path):
    shares = (0.5, 0.25, 0.75, 0.0)
    names = [CONVS[0], *(f"{name}.weight" for name in CONVS[1:])]
    (group,) = table_of(tmp_path, dict(zip(names, shares))).groups
    kept = [keep / size for keep, size in zip(keeps_at(group, 0), group.num_weights)]
    assert kept == [1 - share for share in shares]


@pytest.mark.parametrize(
    "table, told",
    [
        ({CONVS[0]: 0.5}, "has no sparsity for `layer1.0.conv2.weight`"),
        (dict.fromkeys((*CONVS, "stem"), 0.5), "prunes no layer `stem`"),
        (dict.fromkeys(CONVS, 90), "says 90 of `layer1.0.conv1`"),
        (dict.fromkeys(CONVS, "90%"), "says '90%' of"),
        ([1, 2], "is not an object of layers"),
        ("{", "cannot read the table `t.json`"),
        ("[" * 100_000, "cannot read the table `t.json`"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_that_says_where(tmp_path, table, told):
    with pytest.raises(dcil.RecipeError, match="E318") as caught:
        table_of(tmp_path, table)
    assert told in str(caught.value)


def test_a_count_or_a_list_that_does_not_fit_is_an_error():
    def codes(target, more=""):
        return codes_of(f'prune "layer1.**" to {target} {{ {more} }}')

    assert codes("at_most(weights=2000)") == ["E318"]
    assert codes("at_most()") == ["E318"] and codes("at_most(weights=9, bytes=9)") == ["E318"]
    assert codes("at_most(weights=9)", "granularity = filter(ties = none)") == ["E318"]
    assert codes("each([50%])") == ["E318"]
    assert codes("at_most(weights=1000)", "schedule = linear(0ep..5ep, initial=90%)") == ["E318"]
