"""What a recipe need not say, what it says twice, and arguments from the command line."""

import pytest
from support.sound import completed

import dcil_dsl as dcil
from dcil_dsl.lang import loads

ONE_PATH = """mix {
  path sparse = masked
  loss cross_entropy(sparse)
  deploy sparse
}
"""


def test_of_a_single_path_kept_and_pruned_weights_learn_without_an_update():
    update = ONE_PATH.replace("  loss", "  update kept, pruned by sparse\n  loss")
    implied, written = (loads(completed("prune Conv2d to 90%\n" + x)) for x in (ONE_PATH, update))
    assert implied.updates == written.updates and implied.warnings == written.warnings == ()


def test_of_a_single_path_without_rules_the_kept_weights_learn():
    train = "train { epochs = 10ep  optimizer = sgd(lr=0.1) }"
    recipe = loads("language 1\n" + ONE_PATH.replace("masked", "full") + train)
    assert [update.parts for update in recipe.updates] == [("kept",)] and not recipe.warnings


def test_a_single_path_is_deployed_without_a_deploy():
    implied = loads(completed("prune Conv2d to 90%\n" + ONE_PATH.replace("  deploy sparse\n", "")))
    assert implied == loads(completed("prune Conv2d to 90%\n" + ONE_PATH))


def test_of_two_paths_nothing_is_implied():
    two = ONE_PATH.replace("  loss", "  path dense = full\n  loss cross_entropy(dense)\n  loss")
    recipe = loads(completed("prune Conv2d to 90%\n" + two))
    assert recipe.updates == () and {warning.code for warning in recipe.warnings} == {"W203"}


def test_two_rules_with_one_selector_are_told_without_a_model():
    recipe = loads(
        completed("prune Conv2d, Linear to 90%\nkeep Conv2d\nprune Conv2d, Linear to 80%")
    )
    (warning,) = recipe.warnings
    assert (warning.code, warning.help) == ("W303", "leave one of the two out")
    assert warning.span.line < warning.others[0].span.line


def test_rules_with_other_selectors_are_not_told():
    assert not loads(completed("prune Conv2d to 90%\nprune first Conv2d to 80%")).warnings


TEXT = completed(
    "let best = sgd(lr=0.5)\n"
    "prune Conv2d to 90% { schedule = cubic(0ep..5ep) }\n"
    "train { epochs = 10ep  optimizer = best  lr = cosine(warmup=1ep) }"
)


def test_an_argument_of_a_call_is_set_by_name():
    recipe = loads(
        TEXT,
        overrides={
            "train.optimizer.lr": "0.1",
            "train.optimizer.momentum": "0.9",
            "train.lr.warmup": "2ep",
            "pruning.schedule.grid": "1ep",
        },
    )
    assert (recipe.train.optimizer.lr, recipe.train.optimizer.momentum) == (0.1, 0.9)
    assert recipe.train.lr.warmup.value == 2 and recipe.rules[0].schedule.grid.value == 1
    again = loads(recipe.text)
    assert again.train == recipe.train and again.rules == recipe.rules


@pytest.mark.parametrize(
    "name, code",
    [
        ("train.optimizer.momentun", "E212"),
        ("train.epochs.lr", "E222"),
        ("train.optimizer.lr.x", "E222"),
        ("train.nothing.lr", "E222"),
        ("data.augment.pixels", "E222"),
    ],
)
def test_an_argument_that_does_not_exist_is_an_error(name, code):
    with pytest.raises(dcil.RecipeError) as caught:
        loads(TEXT, overrides={name: "1"})
    assert code in {one.code for one in caught.value.diagnostics}
