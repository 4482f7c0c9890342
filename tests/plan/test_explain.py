"""The story of one layer: every rule that matches it, its budget, its moments, its teachers."""

import pytest
from support.resolving import MIX, Net
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.lang import load, loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.explain import explain_layer
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.text import Page

RULES = """
pruning { schedule = linear(0ep..4ep) refresh = 5 steps }
prune Conv2d to global(80%)
prune "layer1" to 50% { freeze = 6ep floor = 10% }
keep  first Conv2d
"""


def story(name, statements=RULES, model=None, mix=MIX, page=Page()):
    recipe = loads(
        f"language 1\n{statements}\n{mix}\ntrain {{ epochs = 10ep optimizer = sgd(lr=0.1) }}\n",
        "x.prune",
    )
    traced = trace_model(model or Net())
    return explain_layer(name, recipe, traced, resolve_recipe(recipe, traced, 10), page)


def lines_of(*arguments, **more):
    return [" ".join(line.split()) for line in story(*arguments, **more).splitlines()]


def test_the_floor_of_its_filters_is_reported():
    assert any(
        "3 weights of each of its 8 filters" in line
        for line in lines_of("stem", "prune Conv2d to global(80%) { filter_floor = 3 }")
    )


def test_every_rule_is_reported_in_order_with_its_text_and_why_it_does_or_does_not_win():
    lines = lines_of("layer1.0.conv1")
    start = lines.index("rules in order; the last that matches wins")
    assert lines[start + 1 : start + 7] == [
        "x.prune:4 prune Conv2d to global(80%)",
        "matches, but line 5 is below it and matches too",
        'x.prune:5 prune "layer1" to 50%',
        "matches and wins",
        "x.prune:6 keep first Conv2d",
        "no match: it selects `stem`",
    ]


def test_a_layer_with_a_budget_of_its_own_tells_what_it_keeps_at_every_moment():
    """64 * 9 = 576 weights, half of them gone after a straight ramp of 40 steps."""
    lines = lines_of("layer1.0.conv1")
    assert "floor it keeps at least 58 of 576 weights" in lines
    assert "0 0 0% 576 of 576 move" in lines
    assert "20 2 25% 432 of 576 move" in lines
    assert "40 4 50% 288 of 576 move" in lines
    assert "60 6 50% 288 of 576 stand still" in lines


def test_a_layer_that_shares_its_budget_is_reported():
    text = story("layer2.0.conv1")
    assert "shared with 1 other layer: the scores decide its share" in text
    assert "by its scores" in text


def test_a_layer_that_no_rule_matches_loses_nothing_and_learns_as_the_rest():
    lines = lines_of("head")
    assert "no rule matches it; it is not pruned" in lines
    assert "sparse sees w, all of it: no rule prunes it; this is the path that is deployed" in lines
    assert "learning the whole run: its weights learn from sparse" in lines


def test_a_kept_layer_names_the_rule_that_keeps_it():
    lines = lines_of("stem")
    assert lines[lines.index("x.prune:6 keep first Conv2d") + 1] == "matches and wins"
    assert not any(line.startswith("budget") for line in lines)


def test_whose_gradients_a_pruned_layer_follows_is_reported_for_each_phase():
    mix = MIX.replace("loss cross_entropy(dense)", "loss cross_entropy(dense) from 5ep")
    lines = lines_of("layer1.0.conv1", mix=mix)
    assert "learning steps 0 to 50 (epoch 0 to 5): kept weights learn from sparse" in lines
    assert "steps 0 to 50 (epoch 0 to 5): pruned weights get no gradient" in lines
    assert "steps 50 to 100 (epoch 5 to 10): pruned weights learn from dense" in lines


def test_a_private_module_tells_its_twins_and_that_paths_teach_only_their_own():
    mix = MIX.replace("  deploy", "  private BatchNorm2d { init = fresh }\n  deploy")
    text = " ".join(story("layer1.0.norm", mix=mix).split())
    assert "a twin, `layer1.0.norm__dense`, which starts fresh" in text
    assert "on each of sparse, dense from that path alone" in text


def test_what_keeps_a_layer_from_sparse_tensor_cores_is_reported():
    reason = "a 3 x 3 kernel is not a matrix product in torch"
    assert f"2:4 sparse tensor cores do not run it: {reason}" in lines_of("layer1.0.conv1")
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    assert "2:4 sparse tensor cores run this pattern in it" in lines_of("0", "", model)
    assert any("4 x 32: both sides" in line for line in lines_of("1", "", model))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.out(self.two(self.one(x)))


def test_a_tied_layer_names_the_others_and_the_rule_that_reaches_it_through_them():
    text = " ".join(story("one", 'prune "two" to 50%', Tied()).split())
    assert "its weight is also that of `two`" in text
    assert "matches and wins, through `two`, which has the same weight" in text


def test_a_layer_inside_a_module_that_stays_opaque_is_reported_which():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    text = story("attention.out_proj", "prune Linear to 50%", Net())
    assert "inside `attention`, which stays opaque in the graph" in text


def test_names_may_be_written_as_wrappers_and_state_dicts_show_them():
    assert story("module.head.weight") == story("head")


def test_a_wrong_name_is_answered_with_the_nearest_and_a_container_with_its_layers():
    with pytest.raises(InputError) as error:
        story("layer1.0.conv9")
    assert error.value.help == "did you mean `layer1.0.conv1`?"
    with pytest.raises(
        InputError, match="`layer1.0` is not a layer of Net; it contains 4"
    ) as error:
        story("layer1.0")
    assert "layer1.0.norm" in error.value.help


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_explanation_of_a_layer_fits_the_page(width):
    for name in ("layer1.0.conv1", "head", "layer1.0.norm"):
        assert max(map(len, story(name, page=Page(width, True)).splitlines())) <= width


def test_a_module_that_holds_layers_is_not_said_to_have_weights_that_nothing_prunes():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))

        def forward(self, x):
            x = self.body(x)
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

    lines = lines_of("body", "prune Conv2d to 50%", model=Looks())
    assert "inside layers that are explained alone: `body.0`, `body.1`" in lines
    assert not any("no rule prunes it" in line for line in lines)


def test_a_layer_that_is_the_whole_model_is_named_and_has_all_of_its_weights():
    lines = lines_of("weight", "prune Linear to 50%", nn.Linear(4, 2))
    assert lines[:2] == [
        "the model Linear(in_features=4, out_features=2, bias=True)",
        "weight weight, 2 x 4 = 8 weights, 100% of all that can be pruned",
    ]


def test_a_layer_that_is_nearly_the_whole_model_does_not_seem_to_be_all_of_it():
    text = story("0", "prune Linear to 50%", nn.Sequential(nn.Linear(90, 90), nn.Linear(90, 1)))
    assert "8,100 weights, 99% of" in text
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 1))
    assert "90,000 weights, >99% of" in story("0", "prune Linear to 50%", model)


def test_a_rule_of_another_file_is_named_with_it_and_comments_are_no_part_of_a_rule(tmp_path):
    train = "train { epochs = 10ep optimizer = sgd(lr=0.1) }"
    (tmp_path / "p.prune").write_text(f"language 1\nprune Conv2d to 50%\n{MIX}\n{train}\n")
    child = tmp_path / "c.prune"
    child.write_text('language 1\nextends "p.prune"\nprune re".*1#?" # the first "one"\n  to 70%\n')
    recipe, traced = load(child), trace_model(Net())
    plan = resolve_recipe(recipe, traced, 10)
    told = explain_layer("layer1.0.conv1", recipe, traced, plan, Page(200))
    assert f"matches, but {child}:3 comes after it and matches too" in told
    assert f'{child}:3  prune re".*1#?" to 70%\n' in told
